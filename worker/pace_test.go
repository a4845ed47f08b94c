package worker

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"thaw/invokewire"
)

// counter is a caller that takes all at once.
type counter struct{ n int }

func (*counter) Header() http.Header           { return http.Header{} }
func (*counter) WriteHeader(int)               {}
func (*counter) Flush()                        {}
func (c *counter) Write(p []byte) (int, error) { c.n += len(p); return len(p), nil }

// streamed gives an instance that answers a call as a stream, or whole, to out.
func streamed(streaming bool, out http.ResponseWriter) (*instance, *call) {
	c := &call{began: time.Now(), said: invokewire.FrameBegin, out: &answer{w: out}, answered: make(chan struct{}), done: make(chan struct{})}
	c.invoke.Streaming = streaming
	return &instance{w: &Worker{limits: usualLimits()}, call: c}, c
}

// say has the function answer n bytes, in frames of size.
func say(t *testing.T, i *instance, n, size int) {
	t.Helper()
	for ; n > 0; n -= size {
		if err := i.takeAnswer(invokewire.Frame{Kind: invokewire.FrameData, Data: make([]byte, min(n, size))}); err != nil {
			t.Fatal(err)
		}
	}
}

// The first 6 MiB of a stream go at once, what follows at 2 MiB a second, however
// it is cut; answers that are not streamed are not held.
func TestStreamsArePaced(t *testing.T) {
	for _, c := range []struct {
		streaming bool
		bytes     int
		want      time.Duration
	}{
		{true, streamBurst, 0}, {true, streamBurst + 2, time.Microsecond}, {true, 20 << 20, 7 * time.Second},
		{true, 200 << 20, 97 * time.Second}, {false, invokewire.MaxPayload, 0},
	} {
		for _, size := range []int{32 << 10, 100_001, invokewire.MaxFrame} {
			synctest.Test(t, func(t *testing.T) {
				out := new(counter)
				i, _ := streamed(c.streaming, out)
				began := time.Now()
				say(t, i, c.bytes, size)
				if took := time.Since(began); took.Round(time.Millisecond) != c.want.Round(time.Millisecond) || out.n != c.bytes {
					t.Errorf("%d bytes in frames of %d: %d after %v, want %v", c.bytes, size, out.n, took, c.want)
				}
			})
		}
	}
}

// What a function does not use of its rate it may use later, up to the burst.
func TestPaceFillsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, _ := streamed(true, new(counter))
		say(t, i, streamBurst, 64<<10)
		time.Sleep(time.Second)
		began := time.Now()
		say(t, i, streamRate, 64<<10)
		if took := time.Since(began); took != 0 {
			t.Errorf("a second's worth was held for %v", took)
		}
		time.Sleep(time.Hour)
		began = time.Now()
		say(t, i, streamBurst+streamRate, 64<<10)
		if took := time.Since(began); took.Round(time.Millisecond) != time.Second {
			t.Errorf("after an hour, more than the burst took %v", took)
		}
	})
}

// A call that is over holds its instance no longer.
func TestPaceEndsWithTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, c := streamed(true, new(counter))
		say(t, i, streamBurst, invokewire.MaxFrame)
		time.AfterFunc(100*time.Millisecond, c.let)
		began := time.Now()
		say(t, i, streamRate, streamRate)
		if took := time.Since(began); took != 100*time.Millisecond {
			t.Errorf("it was held for %v", took)
		}
	})
}

// readPieces reads what the sample function streams, a MiB of each letter after the other,
// no faster than the heap is looked at, and tells how many bytes came.
func readPieces(t *testing.T, body io.Reader) (total int) {
	t.Helper()
	const piece = 1 << 20
	got := make([]byte, piece)
	for n := 0; ; n++ {
		read, err := io.ReadFull(body, got)
		total += read
		if want := bytes.Repeat([]byte{byte('a' + n%26)}, read); !bytes.Equal(got[:read], want) {
			t.Fatalf("piece %d is another", n)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return total
		}
		if err != nil {
			t.Fatalf("after %d bytes: %v", total, err)
		}
		var m runtime.MemStats
		if runtime.ReadMemStats(&m); m.HeapInuse > mostHeap {
			t.Fatalf("after %d bytes the worker's heap takes %d MiB", total, m.HeapInuse>>20)
		}
	}
}

// The longest stream arrives whole, one that is longer is cut there, with an error
// that says so, and neither worker nor instance keeps what it passes on.
func TestLongestStream(t *testing.T) {
	const most, mostMemory = 200 << 20, 96 << 20
	r := newRig(t, nil)
	r.w.limits.stream = 1 << 30 // or each would take 97 seconds
	r.start("i", "", spec(func(s *invokewire.Spec) { s.Memory = 1769 }))
	for _, pieces := range []int{200, 201} {
		resp := r.streamed("i", fmt.Sprint(pieces), fmt.Sprintf(`{"pieces":%d,"bytes":1048576}`, pieces))
		n := readPieces(t, resp.Body)
		resp.Body.Close()
		said, err := base64.StdEncoding.DecodeString(resp.Trailer.Get(invokewire.HeaderErrorBody))
		failed := resp.Trailer.Get(invokewire.HeaderFunctionError) != ""
		if cut := pieces<<20 > most; cut != failed || cut != strings.Contains(string(said), "Function.ResponseSizeTooLarge") || n > most || n < most-1<<20 || !cut && n != most || err != nil {
			t.Errorf("%d MiB: %d bytes, failed %t: %s, %v", pieces, n, failed, said, err)
		}
	}
	if used := r.w.find("i").used.Load(); used == 0 || used > mostMemory {
		t.Errorf("the instance has taken %d bytes", used)
	}
	if v, got := r.ask("i", "after", `{}`); v.Invokes == 0 {
		t.Errorf("afterwards: %+v", got)
	}
}
