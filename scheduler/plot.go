package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/damselfly-p2p/damselfly/scheduler/sim"
)

// plot is a picture of completed nodes over time.
type plot struct {
	title, subtitle string
	nodes           int
	runs            []*sim.Result
	median          *sim.Result // drawn strongest
}

// The picture's size and the frame of its axes, in pixels.
const (
	plotWidth, plotHeight           = 880.0, 500.0
	plotLeft, plotRight             = 84.0, 28.0
	plotTop, plotBottom             = 106.0, 64.0
	plotMargin                      = 22.0
	plotInk, plotDim, plotGrid      = "#1f2933", "#5f6c7b", "#e4e7eb"
	plotLine, plotBound, plotFont   = "#0b69c7", "#c2410c", "Helvetica, Arial, sans-serif"
	plotAxisTicks                   = 8
	plotFrameWidth, plotFrameHeight = plotWidth - plotLeft - plotRight, plotHeight - plotTop - plotBottom
)

// write draws the picture as SVG.
func (p plot) write(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%[1]g" height="%[2]g" viewBox="0 0 %[1]g %[2]g" font-family="%[3]s" font-size="14" role="img">`+"\n",
		plotWidth, plotHeight, plotFont)
	fmt.Fprintf(&b, "<title>%s</title>\n", escape(p.title))
	fmt.Fprintf(&b, `<rect width="%g" height="%g" fill="#ffffff"/>`+"\n", plotWidth, plotHeight)
	p.heading(&b)

	end, step, unit, scale := p.timeAxis()
	x := func(seconds float64) float64 { return plotLeft + seconds/end*plotFrameWidth }
	y := func(nodes float64) float64 {
		return plotTop + plotFrameHeight - nodes/float64(max(p.nodes, 1))*plotFrameHeight
	}
	for i := 0; float64(i)*step <= end*1.0001; i++ {
		at := x(float64(i) * step)
		line(&b, at, plotTop, at, plotTop+plotFrameHeight, plotGrid, 1, "")
		label(&b, at, plotTop+plotFrameHeight+20, "middle", plotDim, "", tickText(float64(i)*step/scale))
	}
	for _, n := range nodeTicks(p.nodes) {
		line(&b, plotLeft, y(n), plotLeft+plotFrameWidth, y(n), plotGrid, 1, "")
		label(&b, plotLeft-10, y(n)+5, "end", plotDim, "", grouped(int64(n)))
	}
	line(&b, plotLeft, plotTop+plotFrameHeight, plotLeft+plotFrameWidth, plotTop+plotFrameHeight, plotInk, 1.2, "")
	line(&b, plotLeft, plotTop, plotLeft, plotTop+plotFrameHeight, plotInk, 1.2, "")
	label(&b, plotLeft+plotFrameWidth/2, plotHeight-18, "middle", plotInk, "", "time after the first want ("+unit+")")
	fmt.Fprintf(&b, `<text transform="translate(24 %g) rotate(-90)" text-anchor="middle" fill="%s">nodes that have everything</text>`+"\n", plotTop+plotFrameHeight/2, plotInk)

	for _, r := range p.runs {
		if r != p.median {
			steps(&b, r, x, y, 1, 0.35)
		}
	}
	at := x(p.median.BoundSeconds)
	line(&b, at, plotTop, at, plotTop+plotFrameHeight, plotBound, 1.8, `stroke-dasharray="7 5"`)
	steps(&b, p.median, x, y, 2.6, 1)
	p.legend(&b)
	b.WriteString("</svg>\n")
	_, err := io.WriteString(out, b.String())
	return err
}

// heading writes the title in two lines where one is too narrow for it, and both it and
// the subtitle as small as they must be. Letters are counted as wide as they are at most
// on the average, for the fonts are the viewer's.
func (p plot) heading(b *strings.Builder) {
	const width, bold, plain = plotWidth - 2*plotMargin, 0.58, 0.54 // of the font's size
	first, second := wrap(p.title, int(math.Floor(width/(16*bold))))
	longest := max(len([]rune(first)), len([]rune(second)), 1)
	style := fmt.Sprintf(`font-size="%.3g" font-weight="600"`, min(16, width/(bold*float64(longest))))
	small := fmt.Sprintf(`font-size="%.3g"`, min(14, width/(plain*float64(max(len([]rune(p.subtitle)), 1)))))
	if second == "" {
		label(b, plotMargin, 32, "start", plotInk, style, first)
		label(b, plotMargin, 56, "start", plotDim, small, p.subtitle)
		return
	}
	label(b, plotMargin, 24, "start", plotInk, style, first)
	label(b, plotMargin, 44, "start", plotInk, style, second)
	label(b, plotMargin, 65, "start", plotDim, small, p.subtitle)
}

// wrap cuts a text that has more than so many letters in two, at a space: after a colon
// or comma if that leaves both short enough, else in the middle.
func wrap(text string, most int) (first, second string) {
	letters := []rune(text)
	if len(letters) <= most {
		return text, ""
	}
	at, best := 0, len(letters)
	for i := 1; i < len(letters); i++ {
		if letters[i] != ' ' {
			continue
		}
		longer := max(i, len(letters)-i-1)
		if letters[i-1] == ':' || letters[i-1] == ',' {
			longer -= most / 4
		}
		if longer < best {
			at, best = i, longer
		}
	}
	if at == 0 {
		return text, ""
	}
	return string(letters[:at]), string(letters[at+1:])
}

// legend stands above the frame, where no line can be.
func (p plot) legend(b *strings.Builder) {
	name := "completed nodes"
	if len(p.runs) > 1 {
		name = fmt.Sprintf("completed nodes, median of %d runs (others thin)", len(p.runs))
	}
	const mid = plotTop - 20
	left := plotLeft
	for _, entry := range []struct{ text, color, style string }{
		{"bound: " + humanSeconds(p.median.BoundSeconds), plotBound, `stroke-dasharray="7 5"`}, {name, plotLine, ""},
	} {
		line(b, left, mid, left+30, mid, entry.color, 2.4, entry.style)
		label(b, left+38, mid+5, "start", plotInk, "", entry.text)
		left += 190
	}
}

// timeAxis is where the axis of time ends, how far its ticks are apart, both in
// seconds, and the unit that they are shown in, which has scale seconds.
func (p plot) timeAxis() (end, step float64, unit string, scale float64) {
	last := 0.0
	for _, r := range p.runs {
		last = max(last, r.BoundSeconds, r.Makespan)
		if n := len(r.Progress); n > 0 {
			last = max(last, r.Progress[n-1].Seconds)
		}
	}
	if last <= 0 {
		last = 1
	}
	unit, scale = "seconds", 1
	switch {
	case last > 3*3600:
		unit, scale = "hours", 3600
	case last > 300:
		unit, scale = "minutes", 60
	case last < 0.3:
		unit, scale = "milliseconds", 0.001
	}
	step = niceStep(last*1.04/scale, plotAxisTicks) * scale
	return last * 1.04, step, unit, scale
}

// niceStep is 1, 2 or 5 times a power of ten, so that at most so many fit in span.
func niceStep(span float64, most int) float64 {
	step := math.Pow(10, math.Floor(math.Log10(span/float64(most))))
	for _, m := range []float64{1, 2, 5, 10} {
		if span/(step*m) <= float64(most) {
			return step * m
		}
	}
	return step * 10
}

// nodeTicks are round numbers of nodes, and all of them.
func nodeTicks(nodes int) []float64 {
	step := max(niceStep(float64(max(nodes, 1)), 6), 1)
	var ticks []float64
	for n := 0.0; n < float64(nodes)-step*0.4; n += step {
		ticks = append(ticks, n)
	}
	return append(ticks, float64(nodes))
}

func tickText(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }

// steps draws one run.
func steps(b *strings.Builder, r *sim.Result, x, y func(float64) float64, width, opacity float64) {
	fmt.Fprintf(b, `<path fill="none" stroke="%s" stroke-width="%g" stroke-opacity="%g" stroke-linejoin="round" d="M%.1f %.1f`,
		plotLine, width, opacity, x(0), y(0))
	for _, point := range r.Progress {
		fmt.Fprintf(b, "H%.1fV%.1f", x(point.Seconds), y(float64(point.Whole)))
	}
	b.WriteString(`"/>` + "\n")
}

func line(b *strings.Builder, x1, y1, x2, y2 float64, color string, width float64, style string) {
	fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%g" %s/>`+"\n", x1, y1, x2, y2, color, width, style)
}

func label(b *strings.Builder, x, y float64, anchor, color, style, text string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s" %s>%s</text>`+"\n", x, y, anchor, color, style, escape(text))
}

func escape(text string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(text)
}
