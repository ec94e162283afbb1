// Package lockedfile reads files and replaces them as a whole, under a lock of
// [flockctx] on the file itself, so that a crash at any instant leaves the old
// content or the new one.
//
// [Update] is read, change and write under one lock; [Write] and [Replace] write
// what does not depend on the old content. Who only reads needs no lock: an open
// file keeps its content, and the path names a whole one at every moment. [Read]
// takes a shared lock, to wait for a writer that is at work.
//
// On nil the new content is on the disk: it was synced before the path named it,
// and the directory was synced after. A process that is killed loses its lock at
// once, and what it leaves behind, files named .flockctx-… in the same directory,
// is removed by the next writer of that file.
//
// A file that is replaced is another file, with the mode, the owner where the system
// allows, and on Linux the ACL, the security labels and the user attributes of the
// old one. Other hard links of the old one keep the old content. Who writes the file
// in place must do so under a lock of [flockctx.Lock], which looks whether the path
// still names the file that it has locked; flock(2) alone may lock a replaced one.
//
// Between machines it is as good as the file system's locks; see docs/semantics.md.
// docs/lockedfile.md says what each step guarantees.
package lockedfile
