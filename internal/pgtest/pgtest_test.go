//go:build unix

package pgtest_test

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/flockctx/flockctx/internal/pgtest"
)

const victimEnv = "PGTEST_VICTIM"

// TestServerEndsWithItsTest kills a test that has a server, so that nothing is cleaned
// up, as after the panic of a test that took too long.
func TestServerEndsWithItsTest(t *testing.T) {
	if os.Getenv(victimEnv) != "" {
		s := pgtest.Start(t)
		os.Stdout.WriteString(s.Addr() + "\n" + s.Dir() + "\n")
		select {}
	}
	if pgtest.Find() == "" {
		t.Skip("SKIP: no PostgreSQL server is installed")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestServerEndsWithItsTest$")
	cmd.Env = append(os.Environ(), victimEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	addr, _ := r.ReadString('\n')
	dir, err := r.ReadString('\n')
	cmd.Process.Kill()
	cmd.Wait()
	if err != nil {
		t.Fatalf("%q, %v", addr, err)
	}
	defer os.RemoveAll(strings.TrimSpace(dir))
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", strings.TrimSpace(addr))
		if err != nil {
			return
		}
		c.Close()
		if time.Now().After(limit) {
			t.Fatal("the server goes on without its test")
		}
	}
}
