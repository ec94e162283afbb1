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
	if states != 1760 {
		t.Errorf("%d states, want 1760", states)
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
		{"the thread's number stays", Protocol{NoLeft: true}, []string{NoStray}},
		{"a Fire before Run is not seen", Protocol{EnterFired: true}, []string{NoLost}},
		{"the handler is not looked after", Protocol{NoArm: true}, []string{NoLost}},
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

// The model is of the code as it is: whoever changes what these functions do to the call
// and its thread has to change the model, and then this list.
func TestModelIsOfTheCode(t *testing.T) {
	relevant := regexp.MustCompile(`^(c\.|h\.arm|send\(|fn\(|stop\(|<-|close\(|call\.Fire|quiet\.OnEnd|err = |sent :=|gone :=|leave :=|l\.desc\.Wait|o\.call|unix\.(Gettid|PthreadSigmask)|(if|for) .*(c\.|has\(|h\.arm|sent|leave|detach|Possible|ErrInterrupted))`)
	for _, test := range []struct{ file, function, want string }{
		{"../../internal/interrupt/thread_linux.go", "Fire", wantFire},
		{"../../internal/interrupt/thread_linux.go", "Run", wantRun},
		{"../../foreign.go", "block", wantBlock},
		{"../../internal/quiet/quiet.go", "OnEnd", wantOnEnd},
	} {
		file, err := parser.ParseFile(token.NewFileSet(), test.file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Name.Name != test.function {
				continue
			}
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
		}
		if g := strings.Join(got, "\n"); g != strings.TrimSpace(test.want) {
			t.Errorf("%s has changed: does the model still hold? It does now\n%s", test.function, g)
		}
	}
}

func source(n ast.Node) string {
	var b strings.Builder
	printer.Fprint(&b, token.NewFileSet(), n)
	return b.String()
}

const wantFire = `
c.mu.Lock()
c.mu.Unlock()
c.fired = true
if c.tid == 0
if c.gone == nil
c.gone = make(chan struct{})
gone := c.gone
for c.tid != 0
if h.arm()
h.arm()
send(c.tid)
c.sent = true
c.mu.Unlock()
<-gone
<-timer.C
c.mu.Lock()
`

const wantRun = `
unix.PthreadSigmask(unix.SIG_UNBLOCK, &mask, &old)
if has(&old, signum)
unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
if !Possible() || !tried()
c.mu.Lock()
if c.fired
c.mu.Unlock()
c.tid = unix.Gettid()
unix.Gettid()
c.mu.Unlock()
fn()
for err == ErrInterrupted && !c.Fired()
c.Fired()
err = fn()
fn()
c.mu.Lock()
c.tid = 0
sent := c.sent
if c.gone != nil
close(c.gone)
c.mu.Unlock()
if sent
unix.Gettid()
`

const wantBlock = `
leave := o.leave
o.call = call
err = errLeft
if !leave
quiet.OnEnd(a.ctx, a.done, call.Fire)
err = l.desc.Wait(call, r)
l.desc.Wait(call, r)
stop()
o.call = nil
`

const wantOnEnd = `
close(ended)
fn()
if !detach()
<-ended
`
