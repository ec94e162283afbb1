package semaphore

// FirstSlot is the byte of slot 0.
const FirstSlot = slots
