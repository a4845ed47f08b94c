package sandbox

import (
	"bytes"
	"io"
)

// awaiting finds a text in what an instance writes to one stream. Its bytes may
// come in any pieces.
type awaiting struct {
	text []byte
	tail []byte // the last bytes, too few to hold text
}

// in tells whether the stream holds the text, now that b has come.
func (a *awaiting) in(b []byte) bool {
	a.tail = append(a.tail, b...)
	found := bytes.Contains(a.tail, a.text)
	if keep := len(a.text) - 1; len(a.tail) > keep {
		a.tail = append(a.tail[:0], a.tail[len(a.tail)-keep:]...)
	}
	return found
}

// pass passes bytes on until the stream's end or until nobody takes them. The
// text, if one is awaited, is looked for after its bytes have been passed on.
func (s *streams) pass(to io.Writer, from io.Reader) {
	if s.given.Await != "" {
		a := &awaiting{text: []byte(s.given.Await)}
		buffer := make([]byte, awaitBuffer)
		for {
			n, err := from.Read(buffer)
			if n > 0 {
				if _, werr := to.Write(buffer[:n]); werr != nil {
					return
				}
			}
			if a.in(buffer[:n]) {
				s.arrived()
				break
			}
			if err != nil {
				return
			}
		}
	}
	_, _ = io.Copy(to, from)
}

// awaitBuffer in bytes is what a pipe holds (pipe(7)).
const awaitBuffer = 64 << 10
