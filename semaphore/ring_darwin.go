package semaphore

import "os"

// ring would ring a bell, of which there are none.
func ring(*os.File) {}
