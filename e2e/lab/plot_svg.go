package main

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
)

// The picture's measures, in pixels: above progress by time in a frame, below a bar for
// each seed and node.
const (
	svgWidth, svgMargin  = 880.0, 22.0
	svgLeft, svgRight    = 84.0, 28.0
	svgTop, svgHeight    = 106.0, 300.0
	svgFrame             = svgWidth - svgLeft - svgRight
	svgLine, svgBar      = 20.0, 18.0
	svgBarsRight         = 150.0 // room for what stands behind a bar
	svgThin, svgThick    = 1.4, 2.6
	svgTicks             = 8
	svgNear              = 10.0 // events closer than that are one
	svgLongest           = 130  // letters of a line
	svgBottom            = svgTop + svgHeight
	svgBarsFrame         = svgFrame - svgBarsRight
	svgFont              = "Helvetica, Arial, sans-serif"
	svgNode, svgFailed   = "#0b69c7", "#b42318"
	svgExcused, svgBound = "#7b8794", "#c2410c"
)

// svgStyle names what looks otherwise on a dark page. Colors of lines and bars are seen
// on both.
const svgStyle = `<style>
.paper{fill:#ffffff}.ink{fill:#1f2933}.dim{fill:#5f6c7b}.grid{stroke:#e4e7eb}.axis{stroke:#1f2933}
@media (prefers-color-scheme:dark){.paper{fill:#11181f}.ink{fill:#e6eaee}.dim{fill:#a3b0bd}.grid{stroke:#2b3640}.axis{stroke:#e6eaee}.node{stroke:#4aa3ff}.bound,.event{stroke:#ff8a4c}.failed{stroke:#ff6b5e}}
</style>
`

// svg draws the picture.
func (p picture) svg() string {
	d := &drawing{}
	x, end := p.timeAxis()
	events := moments(p.events, time.Duration(svgNear/svgFrame*end*float64(time.Second)))
	bars := svgBottom + 92 + float64(len(events))*svgLine
	height := bars + float64(len(p.seeds)+len(p.nodes))*svgBar + 62
	fmt.Fprintf(d, `<svg xmlns="http://www.w3.org/2000/svg" width="%[1]g" height="%[2]g" viewBox="0 0 %[1]g %[2]g" font-family="%[3]s" font-size="14" role="img">`+"\n",
		svgWidth, height, svgFont)
	fmt.Fprintf(d, "<title>%s</title>\n%s", html.EscapeString(p.title()), svgStyle)
	fmt.Fprintf(d, `<rect class="paper" width="%g" height="%g"/>`+"\n", svgWidth, height)
	d.text(svgMargin, 32, "start", "ink", `font-size="16" font-weight="600"`, p.title())
	d.text(svgMargin, 56, "start", "dim", "", shorten(p.subtitle()))
	p.drawProgress(d, x, end, events)
	for i, e := range events {
		d.text(svgLeft, svgBottom+64+float64(i)*svgLine, "start", "dim", "", shorten(fmt.Sprintf("%d: %.2f s, %s", i+1, e.at.Seconds(), e.what)))
	}
	p.drawBars(d, bars)
	d.WriteString("</svg>\n")
	return d.String()
}

// timeAxis is where seconds are in the frame, and how many it shows.
func (p picture) timeAxis() (x func(seconds float64) float64, end float64) {
	end = p.result.BoundSeconds
	for _, n := range p.nodes {
		end = max(end, n.end().Seconds())
	}
	for _, e := range p.events {
		end = max(end, e.at.Seconds())
	}
	if end <= 0 {
		end = 1
	}
	end *= 1.04
	return func(seconds float64) float64 { return svgLeft + max(seconds, 0)/end*svgFrame }, end
}

// drawProgress draws what each node's client had by when, the bound and the events.
func (p picture) drawProgress(d *drawing, x func(float64) float64, end float64, events []event) {
	whole := max(p.result.BlobBytes, 1)
	unit, unitName := byteUnit(whole)
	y := func(bytes float64) float64 { return svgBottom - bytes/float64(whole)*svgHeight }
	step := niceStep(end, svgTicks)
	for i := 0; float64(i)*step <= end*1.0001; i++ {
		at := x(float64(i) * step)
		d.line(at, svgTop, at, svgBottom, "grid", "")
		d.text(at, svgBottom+20, "middle", "dim", "", strconv.FormatFloat(float64(i)*step, 'g', 6, 64))
	}
	for _, n := range byteTicks(float64(whole) / unit) {
		d.line(svgLeft, y(n*unit), svgLeft+svgFrame, y(n*unit), "grid", "")
		d.text(svgLeft-10, y(n*unit)+5, "end", "dim", "", strconv.FormatFloat(n, 'g', 4, 64))
	}
	d.line(svgLeft, svgBottom, svgLeft+svgFrame, svgBottom, "axis", `stroke-width="1.2"`)
	d.line(svgLeft, svgTop, svgLeft, svgBottom, "axis", `stroke-width="1.2"`)
	d.text(svgLeft+svgFrame/2, svgBottom+40, "middle", "ink", "", "time since the start (seconds)")
	fmt.Fprintf(d, `<text transform="translate(24 %g) rotate(-90)" text-anchor="middle" class="ink">%s that a node&#8217;s client has</text>`+"\n", svgTop+svgHeight/2, unitName)

	for i, e := range events {
		at := x(e.at.Seconds())
		d.line(at, svgTop, at, svgBottom, "event", `stroke="`+svgBound+`" stroke-width="1.2" stroke-dasharray="2 3"`)
		d.text(at, svgTop-4, "middle", "ink", `font-size="12"`, strconv.Itoa(i+1))
	}
	slowest := p.slowest()
	for i, n := range p.nodes {
		if i != slowest {
			d.path(n, x, y, svgThin)
		}
	}
	at := x(p.result.BoundSeconds)
	d.line(at, svgTop, at, svgBottom, "bound", boundStyle)
	if slowest >= 0 {
		d.path(p.nodes[slowest], x, y, svgThick)
	}
	p.legend(d, slowest)
}

// legend stands above the frame, where no line can be. It has what the picture has.
func (p picture) legend(d *drawing, slowest int) {
	entries := []struct{ text, class, style string }{
		{fmt.Sprintf("bound from a start at 0: %.2f s", p.result.BoundSeconds), "bound", boundStyle},
		{"node", "node", lineStyle(drawnNode{}, svgThin)},
	}
	add := func(text string, n drawnNode, width float64) {
		entries = append(entries, struct{ text, class, style string }{text, n.class(), lineStyle(n, width)})
	}
	if slowest >= 0 {
		add(p.nodes[slowest].name+", the slowest", drawnNode{}, svgThick)
	}
	var failed, excused bool
	for _, n := range p.nodes {
		excused = excused || n.excused
		failed = failed || n.failed && !n.excused
	}
	if failed {
		add("failed", drawnNode{failed: true}, svgThin)
	}
	if excused {
		add("ended on purpose", drawnNode{excused: true}, svgThin)
	}
	const mid = svgTop - 27
	left := svgLeft
	for _, e := range entries {
		d.line(left, mid, left+28, mid, e.class, e.style)
		d.text(left+35, mid+5, "start", "ink", "", e.text)
		left += 53 + 6.3*float64(len(e.text))
	}
}

// drawBars draws who fed whom: from what kind of source each seed and node has its
// bytes.
func (p picture) drawBars(d *drawing, top float64) {
	kinds := p.kinds()
	d.text(svgMargin, top, "start", "ink", `font-weight="600"`, "Who fed whom")
	left := svgLeft + 66
	for i, kind := range kinds {
		d.rect(left, top-11, 12, 12, colorOf(i))
		d.text(left+18, top, "start", "ink", "", "from "+from(kind))
		left += 72 + 7*float64(len(from(kind)))
	}
	most := p.result.BlobBytes
	all := append(append([]drawnNode(nil), p.seeds...), p.nodes...)
	for _, n := range all {
		most = max(most, sum(n.from))
	}
	unit, unitName := byteUnit(p.result.BlobBytes)
	d.text(svgWidth-svgRight, top, "end", "dim", "", unitName+" of each")
	top += 16
	for i, n := range all {
		y := top + float64(i)*svgBar
		d.text(svgLeft-10, y+13, "end", "dim", `font-size="12"`, n.name)
		at, parts := svgLeft, []string(nil)
		for k, kind := range kinds {
			wide := float64(n.from[kind]) / float64(max(most, 1)) * svgBarsFrame
			if wide > 0 {
				d.rect(at, y+2, wide, svgBar-4, colorOf(k))
				at += wide
			}
			parts = append(parts, strconv.FormatFloat(float64(n.from[kind])/unit, 'f', 1, 64))
		}
		if n.from == nil {
			parts = []string{"not known: it had ended"}
		}
		d.text(svgWidth-svgRight, y+13, "end", "dim", `font-size="12"`, strings.Join(parts, " + "))
	}
	bottom := top + float64(len(all))*svgBar
	d.line(svgLeft, top, svgLeft, bottom, "axis", `stroke-width="1.2"`)
	whole := svgLeft + float64(p.result.BlobBytes)/float64(max(most, 1))*svgBarsFrame
	d.line(whole, top, whole, bottom, "axis", `stroke-width="1" stroke-dasharray="2 3"`)
	d.text(whole, bottom+18, "middle", "dim", "", "all: "+humanBytes(p.result.BlobBytes))
}

const boundStyle = `stroke="` + svgBound + `" stroke-width="1.8" stroke-dasharray="7 5"`

func (n drawnNode) class() string {
	switch {
	case n.excused:
		return "excused"
	case n.failed:
		return "failed"
	default:
		return "node"
	}
}

// lineStyle is that of a node's line.
func lineStyle(n drawnNode, width float64) string {
	color, more := svgNode, ""
	switch n.class() {
	case "excused":
		color, more = svgExcused, ` stroke-dasharray="4 3"`
	case "failed":
		color = svgFailed
	default:
		if width < svgThick {
			more = ` stroke-opacity="0.75"`
		}
	}
	return fmt.Sprintf(`stroke="%s" stroke-width="%g"%s`, color, width, more)
}

// from is a kind of source in a sentence.
func from(kind string) string {
	switch kind {
	case cluster.FromOrigin:
		return "the origin"
	case cluster.FromSeed:
		return "seeds"
	case cluster.FromPeer:
		return "other nodes"
	default:
		return kind
	}
}

// colorOf is that of the kind of source that is drawn as number i.
func colorOf(i int) string {
	colors := []string{"#e69f00", "#0b69c7", "#009e73", "#7b8794"}
	return colors[min(i, len(colors)-1)]
}

func sum(from map[string]int64) int64 {
	var n int64
	for _, bytes := range from {
		n += bytes
	}
	return n
}

// niceStep is 1, 2 or 5 times a power of ten, so that at most so many fit in span.
func niceStep(span float64, most int) float64 {
	step := math.Pow(10, math.Floor(math.Log10(span/float64(most))))
	for _, m := range []float64{1, 2, 5} {
		if span/(step*m) <= float64(most) {
			return step * m
		}
	}
	return step * 10
}

// byteTicks are round numbers below whole, and whole.
func byteTicks(whole float64) []float64 {
	step := niceStep(whole, 6)
	var ticks []float64
	for i := 0; float64(i)*step < whole-step*0.4; i++ {
		ticks = append(ticks, float64(i)*step)
	}
	return append(ticks, whole)
}

// shorten cuts a line that would leave the picture.
func shorten(s string) string {
	r := []rune(s)
	if len(r) <= svgLongest {
		return s
	}
	return string(r[:svgLongest-1]) + "…"
}

// drawing collects SVG.
type drawing struct{ strings.Builder }

func (d *drawing) line(x1, y1, x2, y2 float64, class, style string) {
	fmt.Fprintf(d, `<line class="%s" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>`+"\n", class, x1, y1, x2, y2, style)
}

func (d *drawing) text(x, y float64, anchor, class, style, text string) {
	fmt.Fprintf(d, `<text class="%s" x="%.1f" y="%.1f" text-anchor="%s" %s>%s</text>`+"\n", class, x, y, anchor, style, html.EscapeString(text))
}

func (d *drawing) rect(x, y, width, height float64, color string) {
	fmt.Fprintf(d, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", x, y, width, height, color)
}

// path draws a node's progress, and its name for who points at it. Points that would
// not be told apart are left out, but for the last.
func (d *drawing) path(n drawnNode, x, y func(float64) float64, width float64) {
	if len(n.progress) == 0 {
		return
	}
	fmt.Fprintf(d, `<path class="%s" fill="none" %s stroke-linejoin="round" d="`, n.class(), lineStyle(n, width))
	drawn := math.Inf(-1)
	for i, p := range n.progress {
		at := x(p.at.Seconds())
		if at-drawn < 1.5 && i < len(n.progress)-1 {
			continue
		}
		drawn = at
		command := "L"
		if i == 0 {
			command = "M"
		}
		fmt.Fprintf(d, "%s%.1f %.1f", command, at, y(float64(p.bytes)))
	}
	fmt.Fprintf(d, `"><title>%s</title></path>`+"\n", html.EscapeString(n.name))
}
