package peertest_test
import ("testing";"github.com/flockctx/flockctx/internal/redistest";"time";"strings")
func BenchmarkZZ(b *testing.B) {
	s := redistest.Start(b)
	c := client(b, s)
	w := ways[0].open(b, c)
	w.lock(b)()
	c.ConfigResetStat(b.Context())
	t0 := time.Now()
	for range 20000 { w.lock(b)() }
	b.Logf("%v each", time.Since(t0)/20000)
	t,_ := c.Info(b.Context(),"commandstats").Result()
	for _, l := range strings.Split(t,"\n") { b.Log(strings.TrimSpace(l)) }
}
