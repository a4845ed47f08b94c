package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"time"
)

const (
	// maxRetries bounds the repetitions of one request, and the resumptions of
	// one blob. With firstDelay and its growth they span about 15 seconds:
	// longer is an outage, and the user's to decide upon.
	maxRetries = 4
	firstDelay = 400 * time.Millisecond
	delayGrows = 3
	// stallTimeout ends a body that gives no byte; a resumption follows.
	stallTimeout = 60 * time.Second
	// maxDrained is how much of a refusal is read to keep its connection.
	maxDrained = 64 << 10
)

// retrier repeats requests that may succeed the next time. It repeats only
// those without a body, which all are but for some token requests.
type retrier struct {
	inner http.RoundTripper
	delay time.Duration
}

// RoundTrip is http.RoundTripper's.
func (t retrier) RoundTrip(req *http.Request) (*http.Response, error) {
	for try := 0; ; try++ {
		resp, err := t.inner.RoundTrip(req)
		if try == maxRetries || req.Body != nil || !transient(resp, err) {
			return resp, err
		}
		if resp != nil {
			io.CopyN(io.Discard, resp.Body, maxDrained)
			resp.Body.Close()
		}
		if err := pause(req.Context(), t.delay, try); err != nil {
			return nil, err
		}
	}
}

// transient tells failures that pass. Refused connections, unknown hosts and
// bad certificates do not, in the time that we wait.
func transient(resp *http.Response, err error) bool {
	if err != nil {
		var timeout interface{ Timeout() bool }
		return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
			errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
			errors.As(err, &timeout) && timeout.Timeout()
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// pause waits before repetition try (from 0), or for the end of ctx.
func pause(ctx context.Context, delay time.Duration, try int) error {
	for range try {
		delay *= delayGrows
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// download reads a blob and, when its connection breaks or goes silent, goes on
// where it stopped: a layer of gigabytes need not start over. Nothing is checked
// at the seam, since the layer's digest covers it. For one goroutine.
type download struct {
	ctx  context.Context
	from *repository
	path string
	size int64 // as the descriptor has it

	offset  int64 // bytes given so far
	skip    int64 // bytes of body that come before offset
	resumed int
	body    io.ReadCloser      // nil between connections
	cancel  context.CancelFunc // ends body's request
}

// connect asks for the blob from offset on.
func (d *download) connect() error {
	ctx, cancel := context.WithCancel(d.ctx)
	header := http.Header{}
	if d.offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", d.offset))
	}
	resp, err := d.from.get(ctx, d.path, header)
	if err == nil {
		if err = d.checkLength(resp); err != nil {
			resp.Body.Close()
		}
	}
	if err != nil {
		cancel()
		return err
	}
	d.body, d.cancel, d.skip = resp.Body, cancel, 0
	if resp.StatusCode == http.StatusOK {
		d.skip = d.offset // a registry that knows no ranges starts over
	}
	return nil
}

// checkLength compares an answer's headers with what was asked for.
func (d *download) checkLength(resp *http.Response) error {
	part := resp.StatusCode == http.StatusPartialContent
	left := d.size
	if part {
		left -= d.offset
	}
	if resp.ContentLength >= 0 && resp.ContentLength != left {
		return fmt.Errorf("registry offers %d bytes for the %d expected: %w", resp.ContentLength, left, ErrCorrupt)
	}
	if part && !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", d.offset)) {
		return fmt.Errorf("registry resumes at %q, not at byte %d", oneLine(resp.Header.Get("Content-Range")), d.offset)
	}
	return nil
}

// Read is io.Reader's. It resumes at most maxRetries times in a blob's life, with
// growing pauses; the error after that is a failure of the network and says
// nothing against the image.
func (d *download) Read(p []byte) (int, error) {
	for {
		if d.body == nil {
			if err := d.connect(); err != nil {
				return 0, err
			}
		}
		n, err := d.read(p)
		d.offset += int64(n)
		if err == nil || err == io.EOF {
			return n, err
		}
		d.disconnect()
		if d.ctx.Err() != nil {
			return n, context.Cause(d.ctx)
		}
		if d.offset >= d.size { // all is here, but for the connection's good end
			return n, io.EOF
		}
		if d.resumed++; d.resumed > maxRetries {
			return n, fmt.Errorf("connection to %s broke %d times, last at byte %d: %s", d.from.repo.RegistryStr(), d.resumed, d.offset, firstLine(err))
		}
		if n > 0 {
			return n, nil
		}
		if err := pause(d.ctx, d.from.delay, d.resumed-1); err != nil {
			return 0, err
		}
	}
}

// read reads once from offset on.
func (d *download) read(p []byte) (int, error) {
	for d.skip > 0 {
		n, err := d.readBody(p[:min(int64(len(p)), d.skip)])
		d.skip -= int64(n)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, err
		}
	}
	return d.readBody(p)
}

// readBody reads once, within stallTimeout.
func (d *download) readBody(p []byte) (int, error) {
	timer := time.AfterFunc(stallTimeout, d.cancel)
	defer timer.Stop()
	return d.body.Read(p)
}

// disconnect ends the connection that body comes from.
func (d *download) disconnect() error {
	if d.body == nil {
		return nil
	}
	d.cancel()
	err := d.body.Close()
	d.body = nil
	return err
}

// Close ends the download.
func (d *download) Close() error { return d.disconnect() }
