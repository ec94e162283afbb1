package lockertest

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
)

const resourceEnv = "LOCKERTEST_RESOURCE"

// A resource is a counter behind a socket. It remembers the highest token that came
// with a request and refuses lower ones; a token of 0 is not checked.
//
// It counts as a lost update whatever it accepts that does not raise the counter by
// one: two writers had read the same value.
type resource struct {
	l net.Listener

	mu              sync.Mutex // guards the fields below
	value, accepted int
	refused, lost   int
	highest         uint64
}

func newResource(t testing.TB) *resource {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &resource{l: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				s := bufio.NewScanner(c)
				for s.Scan() {
					fmt.Fprintln(c, r.answer(s.Text()))
				}
			}()
		}
	}()
	return r
}

func (r *resource) addr() string { return r.l.Addr().String() }

func (r *resource) answer(line string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var v int
	var n uint64
	if _, err := fmt.Sscanf(line, "get %d", &n); err == nil {
		if !r.admit(n) {
			return "refused"
		}
		return fmt.Sprint(r.value)
	}
	if _, err := fmt.Sscanf(line, "put %d %d", &v, &n); err != nil {
		return err.Error()
	}
	if !r.admit(n) {
		return "refused"
	}
	if v != r.value+1 {
		r.lost++
	}
	r.value = v
	r.accepted++
	return "ok"
}

func (r *resource) admit(n uint64) bool {
	if n != 0 && n < r.highest {
		r.refused++
		return false
	}
	r.highest = max(r.highest, n)
	return true
}

func (r *resource) counts() (accepted, refused, lost int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.accepted, r.refused, r.lost
}

// A resourceClient is a child's connection to the parent's resource.
type resourceClient struct {
	c net.Conn
	r *bufio.Reader
}

func dialResource() *resourceClient {
	c, err := net.Dial("tcp", os.Getenv(resourceEnv))
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	return &resourceClient{c, bufio.NewReader(c)}
}

func (r *resourceClient) ask(format string, args ...any) string {
	fmt.Fprintf(r.c, format+"\n", args...)
	line, err := r.r.ReadString('\n')
	if err != nil {
		os.Exit(1) // the test is over
	}
	return strings.TrimSpace(line)
}
