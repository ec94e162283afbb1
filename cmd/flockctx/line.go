package main

import (
	"strings"
	"unicode"

	eastasian "golang.org/x/text/width"
)

// timeMark separates a holder from since when it was seen. It is not printable.
const timeMark = "\x00"

func untimed(line string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(line, timeMark)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		_, line, _ = strings.Cut(rest, timeMark)
	}
}

// printable replaces what would move the cursor, or worse.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// columns returns how many columns of a terminal a text takes.
func columns(s []rune) (n int) {
	for _, r := range s {
		n += runeColumns(r)
	}
	return n
}

func runeColumns(r rune) int {
	if unicode.In(r, unicode.Mn, unicode.Me) {
		return 0
	}
	if k := eastasian.LookupRune(r).Kind(); k == eastasian.EastAsianWide || k == eastasian.EastAsianFullwidth {
		return 2
	}
	return 1
}

const (
	// leastPath is how many columns of a path stay where the line is too long.
	leastPath = 16

	// narrow is the width of a terminal that has no room for both.
	narrow = 60
)

// fit makes the line of prefix, paths and rest that has n columns at most. Who is in the
// way matters most: the path gives way first, to its end, and on a narrow terminal the
// whole of it.
func fit(prefix, paths, rest string, n int) string {
	plain := strings.ReplaceAll(rest, timeMark, "")
	room := n - columns([]rune(prefix+plain))
	if columns([]rune(paths)) > room {
		paths = tail(paths, max(room, leastPath))
	}
	if holder, ok := strings.CutPrefix(rest, ": "); ok && n < narrow && columns([]rune(paths)) > room {
		return cut(holder, n)
	}
	return cut(prefix+paths+rest, n)
}

// tail shortens s to its last n columns.
func tail(s string, n int) string {
	r := []rune(s)
	if columns(r) <= n {
		return s
	}
	for len(r) > 0 && columns(r) > n-1 {
		r = r[1:]
	}
	return "…" + string(r)
}

// cut shortens the line to n columns. The command of a holder gives way, so that
// the time at the end stays in sight.
func cut(line string, n int) string {
	r := []rune(strings.ReplaceAll(line, timeMark, ""))
	if columns(r) <= n {
		return string(r)
	}
	tail := 0 // how many runes at the end stay
	if before, _, found := strings.Cut(line, timeMark); found && strings.Count(line, timeMark) == 2 {
		tail = len(r) - len([]rune(before)) + 1 // and the bracket
	}
	dots := "…"
	if n < 10 {
		dots = ""
	}
	room := n - len([]rune(dots)) - columns(r[len(r)-tail:])
	if n < 10 || room <= 0 {
		tail = 0
		room = n - len([]rune(dots))
	}
	head := 0
	for head < len(r) && columns(r[:head+1]) <= room {
		head++
	}
	return string(r[:head]) + dots + string(r[len(r)-tail:])
}
