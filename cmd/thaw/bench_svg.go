//go:build cloud

package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"slices"
)

// Sizes of the drawing, in pixels.
const (
	svgWidth, svgHeight = 420, 300 // of a panel's plot
	svgMargin           = 50
)

// svgColors are those of rows, told apart also by who sees few of them.
var svgColors = [...]string{"#0072b2", "#d55e00", "#009e73", "#cc79a7"}

// drawColdstarts draws the empirical distribution functions of init and of total,
// one panel each.
func drawColdstarts(rows []*coldRow) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", 2*(svgWidth+2*svgMargin), svgHeight+2*svgMargin)
	b.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n")
	for i, panel := range []struct {
		title  string
		values func(*coldRow) []float64
	}{
		{"init of cold starts", func(r *coldRow) []float64 { return r.inits }},
		{"total of cold starts, from sending to the end", func(r *coldRow) []float64 { return r.totals }},
	} {
		fmt.Fprintf(&b, `<g transform="translate(%d %d)">`+"\n", svgMargin+i*(svgWidth+2*svgMargin), svgMargin)
		drawPanel(&b, panel.title, rows, panel.values)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func drawPanel(b *bytes.Buffer, title string, rows []*coldRow, values func(*coldRow) []float64) {
	end := 1.0
	for _, r := range rows {
		if v := values(r); len(v) > 0 {
			end = max(end, slices.Max(v))
		}
	}
	label := func(x, y float64, anchor, text string) {
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s">`, x, y, anchor)
		_ = xml.EscapeText(b, []byte(text)) // a buffer takes all
		b.WriteString("</text>\n")
	}
	label(svgWidth/2, -12, "middle", title)
	for i := range 5 {
		at := float64(i) / 4
		fmt.Fprintf(b, `<path d="M0 %.1fH%d" stroke="#ddd"/>`+"\n", svgHeight*(1-at), svgWidth)
		label(-8, svgHeight*(1-at)+4, "end", fmt.Sprintf("%.0f %%", 100*at))
		label(svgWidth*at, svgHeight+18, "middle", fmt.Sprintf("%.0f", end*at))
	}
	label(svgWidth/2, svgHeight+36, "middle", "ms")
	for i, r := range rows {
		color := svgColors[i%len(svgColors)]
		fmt.Fprintf(b, `<path d="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", steps(values(r), end), color)
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="12" height="4" fill="%s"/>`+"\n", svgWidth-150, svgHeight-14-16*i, color)
		label(svgWidth-132, float64(svgHeight-8-16*i), "start", fmt.Sprintf("%s, %d MB", r.Name, r.MemoryMB))
	}
}

// steps is the path of a distribution function, up to end on the right.
func steps(values []float64, end float64) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "M0 %d", svgHeight)
	for i, v := range slices.Sorted(slices.Values(values)) {
		fmt.Fprintf(&b, "H%.1fV%.1f", svgWidth*v/end, svgHeight*(1-float64(i+1)/float64(len(values))))
	}
	if len(values) > 0 {
		fmt.Fprintf(&b, "H%d", svgWidth)
	}
	return b.Bytes()
}
