//go:build unix

package advisory_test

import (
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// A fake is a server as no test can have one: of another version, on another system.
// It grants every lock.
type fake struct {
	version string
	refuse  string // it refuses queries that contain this, if that is not empty
	silent  string // and does not answer queries that contain this

	mu    sync.Mutex // guards asked
	asked []string
}

// start returns how to connect to the server.
func (f *fake) start(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f.serve(c)
		}
	}()
	return "postgres://postgres@" + l.Addr().String() + "/postgres?sslmode=disable"
}

func (f *fake) serve(c net.Conn) {
	defer c.Close()
	b := pgproto3.NewBackend(c, c)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return
	}
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.ParameterStatus{Name: "server_version", Value: f.version})
	b.Send(&pgproto3.BackendKeyData{ProcessID: 7, SecretKey: []byte{1, 2, 3, 4}})
	for {
		b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		if b.Flush() != nil {
			return
		}
		msg, err := b.Receive()
		if err != nil {
			return
		}
		q, ok := msg.(*pgproto3.Query)
		if !ok {
			return
		}
		f.mu.Lock()
		f.asked = append(f.asked, q.String)
		f.mu.Unlock()
		switch {
		case f.silent != "" && strings.Contains(q.String, f.silent):
			b.Receive() // until the client hangs up
			return
		case f.refuse != "" && strings.Contains(q.String, f.refuse):
			b.Send(&pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: "22023", Message: `invalid value for parameter "` + f.refuse + `": 100`})
		case strings.Contains(q.String, "pg_control_system"):
			row(b, "7", "1", "00000001", "3600000", "long ago")
		case strings.Contains(q.String, "pg_backend_pid"):
			row(b, "7")
		case strings.Contains(q.String, "nextval"):
			row(b, "1", "16384", "")
		default:
			row(b, "t")
		}
	}
}

func row(b *pgproto3.Backend, values ...string) {
	var r pgproto3.DataRow
	for _, v := range values {
		r.Values = append(r.Values, []byte(v))
	}
	b.Send(&r)
	b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
}

// asks reports whether a query that contains all of words has come.
func (f *fake) asks(words ...string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, q := range f.asked {
		n := 0
		for _, w := range words {
			if strings.Contains(q, w) {
				n++
			}
		}
		if n == len(words) {
			return true
		}
	}
	return false
}
