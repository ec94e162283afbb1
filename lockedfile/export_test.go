package lockedfile

var MarkOf = markOf
