//go:build linux

package verify

import (
	"strings"
	"testing"
)

// The checker must bite: each of these histories has one thing wrong with it.
func TestCheckerFindsViolations(t *testing.T) {
	seq := 0
	op := func(client int, what string, shared bool, call, ret int64, result string) []event {
		seq++
		c := event{At: call, Client: client, N: seq, Op: what, File: "f", Mech: "flock", Shared: shared, To: segments}
		r := c
		r.At, r.Return, r.Result = ret, true, result
		return []event{c, r}
	}
	join := func(lists ...[]event) (es []event) {
		for _, l := range lists {
			es = append(es, l...)
		}
		return es
	}
	for _, test := range []struct {
		name, want string
		es         []event
		deaths     map[int]death
	}{
		{"fine", "", join(
			op(1, "lock", false, 1, 2, "ok"), op(2, "lock", false, 1, 5, "ok"), op(3, "try", true, 2, 3, "busy"),
			op(1, "unlock", false, 3, 6, "ok"), op(2, "unlock", false, 7, 8, "ok"),
			op(1, "lock", true, 9, 10, "ok"), op(2, "lock", true, 9, 11, "ok"),
			op(1, "unlock", true, 12, 13, "ok"), op(2, "unlock", true, 12, 13, "ok")), nil},
		{"two writers", "held together", join(
			op(1, "lock", false, 1, 2, "ok"), op(2, "lock", false, 1, 5, "ok"),
			op(1, "unlock", false, 8, 9, "ok"), op(2, "unlock", false, 10, 11, "ok")), nil},
		{"reader beside writer", "held together", join(
			op(1, "lock", false, 1, 2, "ok"), op(2, "lock", true, 1, 5, "ok"),
			op(1, "unlock", false, 8, 9, "ok"), op(2, "unlock", true, 10, 11, "ok")), nil},
		{"overlap that only the order of operations shows", "not one of a reader-writer lock", join(
			// 2 locks and unlocks between the calls of 1's lock and unlock, and
			// 3 does, but 1 never had a moment without them.
			op(1, "lock", false, 1, 4, "ok"), op(1, "unlock", false, 4, 20, "ok"),
			op(2, "lock", false, 1, 2, "ok"), op(2, "unlock", false, 5, 6, "ok"),
		), nil},
		{"busy without a holder", "busy without a holder", join(
			op(1, "lock", false, 1, 2, "ok"), op(1, "unlock", false, 3, 4, "ok"), op(2, "try", false, 5, 6, "busy")), nil},
		{"left locked", "never unlocked", op(1, "lock", false, 1, 2, "ok"), nil},
		{"hung", "never returned", op(1, "lock", false, 1, 2, "ok")[:1], nil},
		{"killed holder", "", join(op(1, "lock", false, 1, 2, "ok"),
			op(2, "lock", false, 2, 6, "ok"), op(2, "unlock", false, 7, 8, "ok")), map[int]death{1: {7}}},
		{"killed holder, granted after its death only", "held together", join(
			op(1, "lock", false, 1, 2, "ok"),
			op(2, "lock", false, 2, 2, "ok"), op(2, "unlock", false, 3, 3, "ok")),
			map[int]death{1: {7}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name == "killed holder, granted after its death only" {
				// 1's last event is later than 2's lock.
				test.es = append(test.es, event{At: 4, Client: 1, N: 1000, Op: "try", File: "other", Mech: "flock", To: segments})
			}
			parts, wrong := parse(test.es, false, test.deaths)
			for _, p := range parts {
				wrong = append(wrong, p.check()...)
			}
			got := strings.Join(wrong, "\n")
			if test.want == "" && got != "" || !strings.Contains(got, test.want) {
				t.Errorf("found %q, want %q", got, test.want)
			}
		})
	}
}
