package gate

import "io/fs"

// BeAlone turns the reader that calls it into the writer, once the other readers
// inside have left; nobody else is let in meanwhile. On an error, ErrEnded, fs.ErrClosed
// or ErrUpgrade, it is still a reader. Two readers that wait for each other to leave
// would do so until one of them is ended: the second one gets ErrUpgrade at once.
func (g *Gate) BeAlone(done, closed <-chan struct{}) error {
	if g.upgrade != nil {
		g.mu.Unlock()
		return ErrUpgrade
	}
	if g.readers == 1 {
		g.readers, g.writer = 0, true
		g.mu.Unlock()
		return nil
	}
	w := newWaiter(Writer, nil)
	g.upgrade = w
	g.mu.Unlock()
	var err error
	select {
	case <-w.ready:
		return nil
	case <-done:
		err = ErrEnded
	case <-closed:
		err = fs.ErrClosed
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.granted { // alone, but too late
		g.writer, g.readers = false, 1
	} else {
		g.upgrade = nil
	}
	g.dispatch(nanotime())
	return err
}

// Share turns the writer that calls it into a reader.
func (g *Gate) Share() {
	g.writer, g.readers = false, g.readers+1
	g.dispatch(nanotime())
}

// Readers returns how many readers are inside.
func (g *Gate) Readers() int { return g.readers }

// Closed reports whether one of those inside waits for another process, and in which
// mode.
func (g *Gate) Closed() (Mode, bool) {
	if g.writer {
		return Writer, g.closed
	}
	return Reader, g.closed
}

// Waiting calls each for every goroutine that waits to come in, in their order, and
// first for a reader inside that waits to be the writer, which has no tag.
func (g *Gate) Waiting(each func(m Mode, tag any)) {
	if g.upgrade != nil {
		each(Writer, nil)
	}
	for w := g.head; w != nil; w = w.next {
		each(w.mode, w.tag)
	}
}

// Crowded reports whether somebody waits to come in.
func (g *Gate) Crowded() bool { return g.head != nil }
