package sandbox

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
)

// Whatever the pieces are, a text is found when its last byte has come.
func TestAwaiting(t *testing.T) {
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		draw := func(n int) []byte {
			b := make([]byte, n)
			for i := range b {
				b[i] = "ab\n"[rnd.IntN(3)]
			}
			return b
		}
		text, all := bytes.ReplaceAll(draw(1+rnd.IntN(6)), []byte("\n"), []byte("a")), draw(rnd.IntN(80))
		want := bytes.Index(all, text)
		a := &awaiting{text: text}
		for at := 0; at < len(all); {
			n := 1 + rnd.IntN(min(9, len(all)-at))
			found := a.in(all[at : at+n])
			at += n
			if due := want >= 0 && at >= want+len(text); found != due {
				t.Fatalf("%q in %q, after %d bytes: %v", text, all, at, found)
			}
			if found {
				break
			}
			if len(a.tail) >= len(text) {
				t.Fatalf("%d bytes are kept of a text of %d", len(a.tail), len(text))
			}
		}
	}
}

// order notes what is written and what arrives.
type order struct{ strings.Builder }

// Bytes are passed on as they come, and the text arrives after its own.
func TestPass(t *testing.T) {
	for text, want := range map[string]string{"": "one two three four", "two": "one two[arrived] three four", "five": "one two three four"} {
		out := new(order)
		s := &streams{given: Instance{Await: text}, arrived: func() { out.WriteString("[arrived]") }}
		s.pass(out, &pieces{"one", " t", "wo", " three", "", " four"})
		if out.String() != want {
			t.Errorf("awaiting %q: %q", text, out.String())
		}
	}
	s := &streams{given: Instance{Await: "two"}, arrived: func() { t.Error("arrived, and nobody took it") }}
	s.pass(refusing{}, &pieces{"one two"})
}

type pieces []string

func (p *pieces) Read(b []byte) (int, error) {
	if len(*p) == 0 {
		return 0, fmt.Errorf("no more")
	}
	n := copy(b, (*p)[0])
	*p = (*p)[1:]
	return n, nil
}

type refusing struct{}

func (refusing) Write([]byte) (int, error) { return 0, fmt.Errorf("broken pipe") }

// A text of either stream arrives once, and all output is as it would be.
func TestAwait(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		for text, want := range map[string]int64{"out 3": 1, "err 3": 1, "out": 1, "nothing of this": 0} {
			c := r.config("turns", "/dev/stderr", "20")
			in := r.instance(c)
			outR, outW := mustPipe(t)
			errR, errW := mustPipe(t)
			var arrived atomic.Int64
			in.Stdout, in.Stderr, in.Await, in.Arrived = outW, errW, text, func() { arrived.Add(1) }
			p, err := r.start(c, in)
			if err != nil {
				t.Fatal(err)
			}
			code, err := p.Wait()
			outW.Close()
			errW.Close()
			var wantOut, wantErr strings.Builder
			for i := range 20 {
				fmt.Fprintln(&wantOut, "out", i)
				fmt.Fprintln(&wantErr, "err", i)
			}
			if out, errs := readAll(outR), readAll(errR); code != 0 || err != nil || out != wantOut.String() || errs != wantErr.String() {
				t.Errorf("%d, %v, %q, %q", code, err, out, errs)
			}
			if got := arrived.Load(); got != want {
				t.Errorf("%q arrived %d times", text, got)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			r.delete(c)
		}
	})
}

func TestAwaitAtTerminal(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		outer, inner := newTerminal(t)
		c := r.config("tty")
		c.Terminal = true
		in := r.instance(c)
		arrived := make(chan struct{})
		in.Stdin, in.Stdout, in.Stderr, in.Await, in.Arrived = inner, inner, inner, "line hel", func() { close(arrived) }
		p, err := r.start(c, in)
		if err != nil {
			t.Fatal(err)
		}
		seen := bufio.NewReader(outer)
		for _, step := range [][2]string{{"hello\n", "line hello"}, {"\x04", "end"}} {
			if _, err := outer.Write([]byte(step[0])); err != nil {
				t.Fatal(err)
			}
			line(t, seen, step[1])
		}
		<-arrived
		if code, err := p.Wait(); code != 5 || err != nil {
			t.Error(code, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}
