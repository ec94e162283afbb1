package flockdebug

import (
	"fmt"
	"strings"
)

// A drawing is a chain as a column of boxes, which fits a phone. Arrows between
// neighbours are straight, the others go along the right margin, each in a lane of its
// own.
type drawing struct {
	Label         string
	Cyclic        bool
	Width, Height int
	Boxes         []box
	Arrows        []arrow
	More          int // nodes that were left out
}

type box struct {
	X, Y, W, H    int
	TitleY, TextY int
	File, Cyclic  bool
	Title, Detail string // as far as there is room
	Full          string
}

type arrow struct {
	Line, Head   string // SVG paths
	Cyclic, Soft bool
	Text         string
	X, Y         int // of the text
}

const (
	drawWidth = 350
	boxHeight = 46
	boxGap    = 30
	laneWidth = 11
	maxLanes  = 8
	maxNodes  = 24
)

// draw draws c.
func (c chain) draw() drawing {
	d := drawing{Cyclic: c.cyclic, Width: drawWidth, Label: "Who waits for whom"}
	nodes := c.nodes
	if len(nodes) > maxNodes {
		d.More = len(nodes) - maxNodes
		nodes = nodes[:maxNodes]
	}
	at := map[*node]int{}
	for i, n := range nodes {
		at[n] = i
	}
	lanes, used := c.lanes(nodes, at)
	right := drawWidth - 4
	if used > 0 {
		right -= 8 + used*laneWidth
	}
	top := func(i int) int { return 4 + i*(boxHeight+boxGap) }
	for i, n := range nodes {
		b := box{X: 4, Y: top(i), W: right - 4, H: boxHeight, File: n.file, Cyclic: n.cyclic}
		b.TitleY, b.TextY = b.Y+19, b.Y+36
		title, detail := n.label()
		room := (b.W - 20) / 7
		b.Title, b.Detail, b.Full = tail(title, room), tail(detail, room+3), title+"\n"+detail
		d.Boxes = append(d.Boxes, b)
		for _, e := range n.out {
			j, ok := at[e.to]
			if !ok {
				continue
			}
			a := arrow{Cyclic: n.cyclic && e.to.cyclic && !e.soft, Soft: e.soft}
			if j == i+1 {
				y := b.Y + boxHeight
				a.Line, a.Head = fmt.Sprintf("M36 %dV%d", y, top(j)-6), fmt.Sprintf("M36 %dl-4 -8h8z", top(j))
				a.X, a.Y, a.Text = 48, y+boxGap/2+4, "waits for"
				if n.file {
					a.Text = "held by"
				}
			} else {
				from, to := b.Y+boxHeight/2+6, top(j)+boxHeight/2-6
				x := right + 14 + lanes[[2]int{i, j}]*laneWidth
				a.Line = fmt.Sprintf("M%d %dH%dV%dH%d", right, from, x, to, right+7)
				a.Head = fmt.Sprintf("M%d %dl8 -4v8z", right, to)
			}
			d.Arrows = append(d.Arrows, a)
		}
	}
	d.Height = top(len(nodes)) - boxGap + 4
	return d
}

// lanes returns the lane of each arrow that is not between neighbours, and how many lanes
// there are: an arrow takes the first one that is free along its way.
func (c chain) lanes(nodes []*node, at map[*node]int) (lanes map[[2]int]int, used int) {
	lanes = map[[2]int]int{}
	var busy [maxLanes][maxNodes]bool
	for i, n := range nodes {
		for _, e := range n.out {
			j, ok := at[e.to]
			if !ok || j == i+1 {
				continue
			}
			lane := 0
			free := func() bool {
				for k := min(i, j); k <= max(i, j); k++ {
					if busy[lane][k] {
						return false
					}
				}
				return true
			}
			for lane < maxLanes-1 && !free() {
				lane++
			}
			for k := min(i, j); k <= max(i, j); k++ {
				busy[lane][k] = true
			}
			lanes[[2]int{i, j}] = lane
			used = max(used, lane+1)
		}
	}
	return lanes, used
}

// label returns the two lines of a box.
func (n *node) label() (title, detail string) {
	switch {
	case n.file && n.longest > 0:
		return n.title, fmt.Sprintf("%s · %d waiting, up to %s", n.detail, n.members, short(n.longest))
	case n.file:
		return n.title, fmt.Sprintf("%s · %d waiting", n.detail, n.members)
	case n.members > 1:
		return fmt.Sprintf("%d %ss", n.members, strings.Fields(n.title)[0]), n.detail
	}
	return n.title, n.detail
}

// tail returns the end of s, which tells more than the beginning of a path or a function
// does, in at most n characters.
func tail(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return "…" + string(r[len(r)-n+1:])
}
