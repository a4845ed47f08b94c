package worker

import "time"

const (
	// streamBurst is how much of a streamed answer goes as fast as it comes, in
	// bytes, and streamRate what follows in a second: Lambda's 6 MB and 2 MB.
	streamBurst = 6 << 20
	streamRate  = 2 << 20
)

// pace holds a streamed answer to its rate: a bucket that is full at first. The
// zero pace is a new answer's. It is for one goroutine.
type pace struct {
	used float64   // of the bucket, in bytes
	last time.Time // when that was so
}

// take says how long n bytes have to wait.
func (p *pace) take(n int, now time.Time) time.Duration {
	if !p.last.IsZero() {
		p.used = max(0, p.used-now.Sub(p.last).Seconds()*streamRate)
	}
	p.last = now
	p.used += float64(n)
	return time.Duration(max(0, p.used-streamBurst) / streamRate * float64(time.Second))
}

// hold waits until n more bytes of a streamed answer may go, or nobody waits for
// them any more. What the function sends meanwhile waits in its socket.
func (c *call) hold(n int) {
	wait := c.pace.take(n, time.Now())
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
