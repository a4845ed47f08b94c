package worker

import "time"

const (
	// streamBurst is how much of a streamed answer goes as fast as it comes, in
	// bytes, and streamRate what follows in a second: Lambda's 6 MB and 2 MB.
	streamBurst = 6 << 20
	streamRate  = 2 << 20
)

// pace holds bytes to a rate: how far they are ahead of it. The zero pace is that
// of nothing yet. It is for one goroutine.
type pace struct {
	ahead time.Duration
	last  time.Time
}

// take counts n bytes and says how long to wait, with so many bytes a second, and
// so many at once.
func (p *pace) take(n, rate, burst int, now time.Time) time.Duration {
	p.ahead = max(0, p.ahead-now.Sub(p.last)) + time.Second*time.Duration(n)/time.Duration(rate)
	p.last = now
	return max(0, p.ahead-time.Second*time.Duration(burst)/time.Duration(rate))
}

// hold waits until n more bytes of a streamed answer may go, so many a second, or
// nobody waits for them any more. What the function sends meanwhile waits in its
// socket.
func (c *call) hold(n, rate int) {
	wait := c.pace.take(n, rate, streamBurst, time.Now())
	if wait <= 0 {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.answered:
	}
}
