// Package text says things to people: sizes, and lines that hold what others
// wrote.
package text

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// Bytes gives a number of bytes to three digits or so: "512.0 KiB".
func Bytes(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	f, units := float64(n), "BKMGTP"
	i := 0
	for ; f >= 1000 && i < len(units)-1; i++ {
		f /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

// Line keeps a text from other people's code, or with a name in it, to a line,
// and control characters from the terminal.
func Line(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
}
