package lockertest

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// A Direction is where a Proxy's bytes go.
type Direction int

const (
	ToServer Direction = 1 << iota
	ToClient
	packets
	Both = ToServer | ToClient

	// Cut is Both where not even acknowledgements come through, as when a cable is
	// cut or a host is dead: the kernels notice, in their time. It needs Linux and a
	// proxy for TCP; elsewhere it is Both.
	Cut = Both | packets
)

// String returns "to server", "to client", "both ways" or "cut".
func (d Direction) String() string {
	if d == Cut {
		return "cut"
	}
	return [...]string{"none", "to server", "to client", "both ways"}[d&Both]
}

// A Proxy is a network between a client and a server, to be broken. It accepts new
// connections also while it swallows, as a network that drops packets may.
type Proxy struct {
	t               testing.TB
	l               net.Listener
	network, target string

	mu      sync.Mutex // guards the fields below
	changed *sync.Cond // swallow or closed has changed
	swallow Direction
	conns   map[net.Conn]bool
	closed  bool
}

// NewProxy returns a proxy for the server that listens on target, on a port of its own
// or, for network "unix", on a socket of the same base name in a folder of its own. It
// is closed at the end of the test.
func NewProxy(t testing.TB, network, target string) *Proxy {
	t.Helper()
	listen := "127.0.0.1:0"
	if network == "unix" {
		dir, err := os.MkdirTemp("", "proxy") // t.TempDir is too long for a socket
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		listen = filepath.Join(dir, filepath.Base(target))
	}
	l, err := net.Listen(network, listen)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{t: t, l: l, network: network, target: target, conns: map[net.Conn]bool{}}
	p.changed = sync.NewCond(&p.mu)
	go p.serve()
	t.Cleanup(p.close)
	return p
}

// Addr returns where the proxy listens.
func (p *Proxy) Addr() string { return p.l.Addr().String() }

// Swallow lets no more bytes through in direction d, without a word to either side.
// They wait for Heal, as packets wait to be sent again.
func (p *Proxy) Swallow(d Direction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.swallow
	p.swallow = d
	for c := range p.conns {
		if was&packets != d&packets {
			p.cutLocked(c)
		}
	}
	p.changed.Broadcast()
}

// cutLocked cuts c off or connects it again, as p.swallow says.
func (p *Proxy) cutLocked(c net.Conn) {
	tc, ok := c.(*net.TCPConn)
	if !ok || !CanCut {
		return
	}
	raw, err := tc.SyscallConn()
	if err == nil {
		if p.swallow&packets != 0 {
			err = deafen(raw)
		} else {
			err = undeafen(raw)
		}
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		p.t.Errorf("proxy: %v", err)
	}
}

// Heal lets everything through again.
func (p *Proxy) Heal() { p.Swallow(0) }

// Reset ends all connections, with a TCP reset where it is TCP.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if tc, ok := c.(*net.TCPConn); ok {
			tc.SetLinger(0)
		}
		c.Close()
	}
	clear(p.conns)
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.changed.Broadcast()
	p.mu.Unlock()
	p.l.Close()
	p.Reset()
}

func (p *Proxy) serve() {
	for {
		client, err := p.l.Accept()
		if err != nil {
			return
		}
		go func() {
			server, err := net.Dial(p.network, p.target)
			if err != nil {
				client.Close()
				return
			}
			for _, c := range []net.Conn{client, server} {
				if tc, ok := c.(*net.TCPConn); ok {
					tc.SetKeepAlive(false) // its probes would be signs of life
				}
			}
			p.mu.Lock()
			if p.closed {
				client.Close()
				server.Close()
			} else {
				for _, c := range []net.Conn{client, server} {
					p.conns[c] = true
					if p.swallow&packets != 0 {
						p.cutLocked(c)
					}
				}
			}
			p.mu.Unlock()
			go p.copy(server, client, ToServer)
			go p.copy(client, server, ToClient)
		}()
	}
}

// copy lets bytes through. The end of a connection is passed on like a packet: not at
// all while the proxy swallows.
func (p *Proxy) copy(to, from net.Conn, d Direction) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if !p.pass(d) {
			return
		}
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			to.Close()
			from.Close()
			p.mu.Lock()
			delete(p.conns, to)
			delete(p.conns, from)
			p.mu.Unlock()
			return
		}
	}
}

// pass waits while the proxy swallows d. It reports whether the proxy is open.
func (p *Proxy) pass(d Direction) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.swallow&d != 0 && !p.closed {
		p.changed.Wait()
	}
	return !p.closed
}
