//go:build unix

package pgtest

import (
	"os"
	"path/filepath"
	"testing"
)

// Standby starts a replica of the server, which streams from it under the name
// "standby", and ends with the test. Options are those of Start.
func (s *Server) Standby(t testing.TB, options ...string) *Server {
	t.Helper()
	r := prepare(t, options)
	out, err := r.command("pg_basebackup", "-h", s.dir, "-p", port(s.Port()), "-U", "postgres", "-D", r.data(), "-X", "stream", "-c", "fast", "--no-sync").CombinedOutput()
	if err != nil {
		t.Fatalf("pg_basebackup: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(r.data(), "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r.options = append(r.options, "primary_conninfo=host="+s.dir+" port="+port(s.Port())+" user=postgres application_name=standby", "hot_standby=on")
	t.Cleanup(r.Kill)
	r.Run()
	return r
}

// Promote makes a standby the primary, and returns when it is.
func (s *Server) Promote() {
	s.t.Helper()
	if out, err := s.command("pg_ctl", "-D", s.data(), "-w", "promote").CombinedOutput(); err != nil {
		s.t.Fatalf("promote: %v\n%s", err, out)
	}
}
