package frontend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// pieces reads a text some bytes at a time, and ends with an error or io.EOF.
func pieces(text string, end error) io.Reader {
	return io.MultiReader(iotest.HalfReader(strings.NewReader(text)), iotest.ErrReader(end))
}

// What a buffer holds is what came, whatever its length was said to be; and of
// what is too long, as much as may be.
func TestBufferIsFilled(t *testing.T) {
	cut := errors.New("cut")
	for _, length := range []int{0, 1, smallBuffer - 1, smallBuffer, smallBuffer + 1, 3 * smallBuffer} {
		text := strings.Repeat("0123456789abcdef", length/16+1)[:length]
		for _, c := range []struct {
			hint  int64
			limit int
			end   error
			want  error
			kept  int
		}{
			{-1, length, io.EOF, nil, length},
			{int64(length), length, io.EOF, nil, length},
			{1, length + 1, io.EOF, nil, length}, // it was said to be shorter
			{-1, length, cut, cut, length},
			{int64(length), length + 10, cut, cut, length},
			{-1, length - 1, io.EOF, errTooLong, length - 1},
			{int64(length), length - 1, io.EOF, errTooLong, 0}, // it is not even read
		} {
			if c.limit < 0 {
				continue
			}
			p := newBuffers()
			b := p.get()
			if err := p.fill(t.Context(), b, pieces(text, c.end), c.hint, c.limit); err != c.want || string(b.b) != text[:c.kept] {
				t.Errorf("%d bytes, %+v: %v, %d bytes kept", length, c, err, len(b.b))
			}
			p.put(b)
			if len(p.slots) != 0 {
				t.Errorf("%d bytes, %+v: the buffer is not given back", length, c)
			}
		}
	}
}

// However many payloads there are, large buffers are few, and whoever waits for
// one gives up with its request.
func TestLargeBuffersAreFew(t *testing.T) {
	p := newBuffers()
	var held []*buffer
	for n := range maxLarge {
		b := p.get()
		b.b = append(b.b, byte(n))
		if err := p.grow(t.Context(), b); err != nil || !b.large || cap(b.b) != largeBuffer || len(b.b) != 1 || b.b[0] != byte(n) {
			t.Fatalf("buffer %d: %v, %v", n, b.b, err)
		}
		held = append(held, b)
	}
	if err := p.grow(t.Context(), held[0]); err != nil {
		t.Errorf("one that is large: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	one := p.get()
	if err := p.fill(ctx, one, strings.NewReader("x"), smallBuffer, maxSync); !errors.Is(err, context.Canceled) || one.large {
		t.Errorf("one more than there are: %v", err)
	}
	if err := p.fill(ctx, one, strings.NewReader("x"), 1, maxSync); err != nil || string(one.b) != "x" {
		t.Errorf("a short payload waits for none of them: %v", err)
	}
	waits := make(chan error, 1)
	go func() { waits <- p.grow(t.Context(), one) }()
	memory := &held[7].b[0]
	p.put(held[7])
	if err := <-waits; err != nil || &one.b[:1][0] != memory || string(one.b) != "x" {
		t.Errorf("it does not get what was given back: %v, %q", err, one.b)
	}
}

// Large buffers that nobody needs are left to the collector after a while, and
// those in turn that were needed lately are kept.
func TestLargeBuffersAreGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newBuffers()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { p.run(ctx); close(ended) }()
		use := func(n int) {
			var held []*buffer
			for range n {
				held = append(held, p.get())
				if err := p.grow(ctx, held[len(held)-1]); err != nil {
					t.Fatal(err)
				}
			}
			for _, b := range held {
				p.put(b)
			}
		}
		free := func() int {
			p.mu.Lock()
			defer p.mu.Unlock()
			return len(p.free)
		}
		use(5)
		for range 4 { // two are in use in each interval
			time.Sleep(shrinkTick)
			synctest.Wait()
			use(2)
		}
		if n := free(); n != 2 {
			t.Errorf("%d are kept of 5, and 2 are used", n)
		}
		time.Sleep(3 * shrinkTick)
		if n := free(); n != 0 {
			t.Errorf("%d are kept, and none is used", n)
		}
		cancel()
		<-ended
	})
}

// Long bodies of control are read a few at a time.
func TestLongBodies(t *testing.T) {
	p := newBuffers()
	ask := func(ctx context.Context, length int64, body io.Reader, limit int64) (string, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://x/", body)
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = length
		b, err := p.readAtMost(r, limit)
		return string(b), err
	}
	for _, c := range []struct {
		length, limit int64
		body          string
		want          error
	}{
		{3, 3, "abc", nil}, {-1, 3, "abc", nil}, {4, 3, "abcd", errTooLong}, {-1, 3, "abcd", errTooLong}, {0, 3, "", nil},
	} {
		if got, err := ask(t.Context(), c.length, strings.NewReader(c.body), c.limit); err != c.want || err == nil && got != c.body {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
	var writers []*io.PipeWriter
	done := make(chan error, longBodies)
	for range longBodies {
		r, w := io.Pipe()
		writers = append(writers, w)
		go func() {
			got, err := ask(t.Context(), modest+1, r, maxControl)
			if err == nil && got != "end" {
				err = fmt.Errorf("it read %q", got)
			}
			done <- err
		}()
		if _, err := w.Write([]byte("e")); err != nil { // now it is being read
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ask(ctx, modest+1, bytes.NewReader(nil), maxControl); !errors.Is(err, context.Canceled) {
		t.Errorf("one more: %v", err)
	}
	if got, err := ask(ctx, 2, strings.NewReader("ab"), maxControl); err != nil || got != "ab" {
		t.Errorf("a short one waits for nobody: %q, %v", got, err)
	}
	for _, w := range writers {
		_, _ = w.Write([]byte("nd")) // a pipe that is read
		_ = w.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
