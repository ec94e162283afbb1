package interrupt

import (
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestProtocolKeepsItsPromises(t *testing.T) {
	states, found := Protocol{}.Search()
	t.Logf("%d states", states)
	for _, v := range found {
		t.Errorf("broken: %s\n\t%s", v.Promise, strings.Join(v.Trace, "\n\t"))
	}
	// A change of the model changes the number, in docs/testing.md as well. Many fewer
	// would mean that the model does not move.
	if states != 702 {
		t.Errorf("%d states, want 702", states)
	}
}

// Each part of the protocol is there for a reason, which the search must find.
func TestSearchFindsSeededBugs(t *testing.T) {
	for _, test := range []struct {
		name string
		p    Protocol
		want []string
	}{
		{"one signal only", Protocol{SendOnce: true}, []string{NoLost}},
		{"no left flag", Protocol{NoLeft: true}, []string{NoStray}},
		{"sent without the mutex", Protocol{SendUnlocked: true}, []string{NoStray}},
		{"nothing flushed", Protocol{NoFlush: true}, []string{NoStray}},
		{"sender not waited for", Protocol{NoWait: true}, []string{NoGoroutine}},
		{"every EINTR taken for the end", Protocol{NoFired: true}, []string{NoEarly}},
		{"every EINTR tried again", Protocol{IgnoreFired: true}, []string{NoLost}},
		{"handler with SA_RESTART", Protocol{Restart: true}, []string{NoLost}},
		{"signal blocked in the thread", Protocol{SignalBlocked: true}, []string{NoLost}},
	} {
		t.Run(test.name, func(t *testing.T) {
			states, found := test.p.Search()
			var got []string
			for _, v := range found {
				got = append(got, v.Promise)
				t.Logf("%d states; broken: %s\n\t%s", states, v.Promise, strings.Join(v.Trace, "\n\t"))
			}
			for _, want := range test.want {
				if !slices.Contains(got, want) {
					t.Errorf("the search does not find that this breaks: %s", want)
				}
			}
		})
	}
}

// The model is of the code as it is: whoever changes what these functions do to the
// interrupt has to change the model, and then this list.
func TestModelIsOfTheCode(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../../blocker_linux.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	relevant := regexp.MustCompile(`^(in\.|unix\.Tgkill|stop\(|<-ended|close\(|unix\.Gettid|sysLock|sigmask|sent :=|fired :=|<-gone|(if|for) .*(in\.|fired|sent|stop|errInterrupted))`)
	want := map[string]string{
		"fire":     wantFire,
		"block":    wantBlock,
		"onThread": wantOnThread,
		"wasFired": wantWasFired,
	}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || want[f.Name.Name] == "" {
			continue
		}
		var got []string
		ast.Inspect(f.Body, func(n ast.Node) bool {
			var text string
			switch n := n.(type) {
			case *ast.CallExpr, *ast.UnaryExpr:
				text = source(n)
			case *ast.AssignStmt:
				text = source(n)
			case *ast.ForStmt:
				if n.Cond != nil {
					text = "for " + source(n.Cond)
				}
			case *ast.IfStmt:
				text = "if " + source(n.Cond)
			}
			if relevant.MatchString(text) && !strings.Contains(text, "\n") {
				got = append(got, text)
			}
			return true
		})
		if g := strings.Join(got, "\n"); g != strings.TrimSpace(want[f.Name.Name]) {
			t.Errorf("%s has changed: does the model still hold? It does now\n%s", f.Name.Name, g)
		}
		delete(want, f.Name.Name)
	}
	if len(want) > 0 {
		t.Errorf("not found: %v", want)
	}
}

func source(n ast.Node) string {
	var b strings.Builder
	printer.Fprint(&b, token.NewFileSet(), n)
	return b.String()
}

const wantFire = `
in.mu.Lock()
in.mu.Unlock()
in.fired = true
if in.left
if in.gone == nil
in.gone = make(chan struct{})
for !in.left
unix.Tgkill(unix.Getpid(), in.tid, sig)
in.sent = true
in.mu.Unlock()
<-gone
in.mu.Lock()
`

const wantBlock = `
close(ended)
in.fire()
sysLock(fd, r)
if err != errInterrupted || in.wasFired()
in.wasFired()
if !stop()
stop()
<-ended
`

const wantOnThread = `
sigmask(unix.SIG_UNBLOCK, &realTime, &old)
sigmask(unix.SIG_SETMASK, &old, nil)
in.tid = unix.Gettid()
unix.Gettid()
in.mu.Lock()
in.left = true
sent := in.sent
if in.gone != nil
close(in.gone)
in.mu.Unlock()
if sent
unix.Gettid()
`

const wantWasFired = `
in.mu.Lock()
in.mu.Unlock()
`
