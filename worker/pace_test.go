package worker

import (
	"net/http"
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
	return &instance{call: c}, c
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
