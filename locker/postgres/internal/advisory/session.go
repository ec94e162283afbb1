package advisory

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// lastWords is how long they may take from a connection that takes no more questions.
const lastWords = 100 * time.Millisecond

// A session is a connection with a read always parked on it: without one, nobody
// notices that the server has ended the session. pgconn reads only while it asks, so
// it makes the connection and hands it over.
type session struct {
	conn     net.Conn
	pid      uint32
	params   map[string]string
	epoch    string
	timeline uint64        // 0: unknown
	server   string        // another one after a start or a promotion
	age      time.Duration // since the server's start, when the session began
	under    uint32        // what its application_name says, see deadlock.go
	expiry   *time.Timer   // of an idle session
	dead     chan struct{} // closed once the connection has ended
	err      error         // why, valid once dead is closed
	closed   func()        // called when the connection has ended
	frontend *pgproto3.Frontend

	mu      sync.Mutex // guards writing to frontend, and the order of pending
	pending []chan answer
}

// An answer is the last row of a query's results, or the server's error.
type answer struct {
	row []string
	err error
}

// newSession takes over conn and starts to read. closed is called when the connection has
// ended, also if newSession fails.
func newSession(conn *pgconn.PgConn, closed func()) (*session, error) {
	h, err := conn.Hijack()
	if err != nil {
		closed()
		return nil, err
	}
	s := &session{conn: h.Conn, pid: h.PID, params: h.ParameterStatuses, frontend: h.Frontend, dead: make(chan struct{}), closed: closed}
	go s.read()
	return s, nil
}

// read delivers answers in the order of the questions, until the connection ends.
func (s *session) read() {
	var a answer
	for {
		msg, err := s.frontend.Receive()
		if err != nil {
			s.conn.Close()
			if s.err = err; a.err != nil {
				s.err = a.err // the server's last words
			}
			close(s.dead)
			s.closed()
			return
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			a.row = a.row[:0]
			for _, v := range msg.Values {
				a.row = append(a.row, string(v))
			}
		case *pgproto3.ErrorResponse:
			a.err = pgconn.ErrorResponseToPgError(msg)
		case *pgproto3.ReadyForQuery:
			s.mu.Lock()
			var to chan answer
			if len(s.pending) > 0 {
				to = s.pending[0]
				s.pending = slices.Delete(s.pending, 0, 1)
			}
			s.mu.Unlock()
			if to != nil {
				to <- a
			}
			a = answer{}
		}
	}
}

// ask sends a query, or several separated by semicolons, and returns the last row. An
// error is the server's, that of the end of the connection, or ctx.Err(). In the last
// case the query goes on: the caller closes the session, or the next one that asks
// gets its answer after this one's.
func (s *session) ask(ctx context.Context, sql string) ([]string, error) {
	to := make(chan answer, 1)
	s.mu.Lock()
	s.pending = append(s.pending, to)
	s.frontend.SendQuery(&pgproto3.Query{String: sql})
	err := s.frontend.Flush()
	s.mu.Unlock()
	if err != nil {
		// The server's last words may have come, but wait to be read.
		s.conn.SetReadDeadline(time.Now().Add(lastWords))
	}
	select {
	case a := <-to:
		return a.row, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.dead:
	}
	select {
	case a := <-to:
		return a.row, a.err
	default:
		return nil, s.err
	}
}

func (s *session) alive() bool {
	select {
	case <-s.dead:
		return false
	default:
		return true
	}
}

// close ends the connection without a word. The server drops what the session holds
// as soon as it sees that: at once while it is idle, and within checkInterval while it
// waits for a lock.
func (s *session) close() { s.conn.Close() }

// quit says goodbye, so that the server logs no broken connection.
func (s *session) quit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn.SetWriteDeadline(time.Now().Add(time.Second))
	s.frontend.Send(&pgproto3.Terminate{})
	s.frontend.Flush()
	s.conn.Close()
}
