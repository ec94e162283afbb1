package flockctx

func sameDescription(a, b uintptr) bool { return a == b }
