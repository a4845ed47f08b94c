package zone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"thaw/chunk"
)

// verdict is what came of a request for a stripe.
type verdict uint8

const (
	failed  verdict = iota // no answer, or none that says anything about the stripe
	good                   // the stripe, with its checksum and its ID
	missing                // the node does not have it
	bad                    // bytes that are not the stripe
)

// answer is one node's. A good one's payload lies in buf, which goes back to
// the pool once nobody reads it.
type answer struct {
	index  int
	what   verdict
	stripe Stripe
	buf    *[]byte
	tag    string // of what is good or bad, for If-Match; "" if the node gave none
	lease  *Lease // of what is missing, if the node said something of it
	err    error  // why it failed, or is bad
}

// question is a GET: for a lease, and waiting for it, or not.
type question struct {
	id   StripeID
	ask  bool          // for a lease
	wait time.Duration // for another's fill
}

// drainable is how many bytes of an answer that says nothing are read to keep
// its connection.
const drainable = 4 << 10

// ask sends a GET and reads all of the answer. won, if not nil, is closed when
// a request that has not been sent need not be.
func (c *Client) ask(ctx context.Context, to *node, q question, won <-chan struct{}) answer {
	a := answer{index: int(q.id.Index)}
	if to == nil {
		a.err = errors.New("no member for it")
		return a
	}
	select {
	case to.slots <- struct{}{}:
		defer func() { <-to.slots }()
	case <-won:
		a.err = errNotSent
		return a
	case <-ctx.Done():
		a.err = fmt.Errorf("%s: too many requests under way: %w", to.addr, ctx.Err())
		return a
	}
	began := time.Now()
	header, query := c.plain, ""
	if q.ask {
		header = c.asking
	}
	if q.wait > 0 {
		query = "wait=" + strconv.FormatInt(q.wait.Milliseconds(), 10)
	}
	to.counts.requests.Add(1)
	res, err := c.transport.RoundTrip(c.request(ctx, http.MethodGet, to.addr, q.id).with(header, query))
	if err != nil {
		a.err = fmt.Errorf("%s: %w", to.addr, err)
		return a
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
		if c.read(&a, res, q.id); a.err != nil {
			a.err = fmt.Errorf("%s: %w", to.addr, a.err)
		}
	case http.StatusNotFound:
		if res.ContentLength != 0 { // a node's has no body, other servers' have a page
			a.err = fmt.Errorf("%s: answered 404 with a page: is it a node of a zone?", to.addr)
			drain(res)
			return a
		}
		a.what = missing
		if l, err := ParseLease(res.Header.Get(LeaseHeader)); err == nil {
			a.lease = &l
		}
		drain(res)
	default:
		a.err = fmt.Errorf("%s: answered %d", to.addr, res.StatusCode)
		drain(res)
	}
	if a.what == good {
		to.counts.latency.Since(began)
		c.counts.network.Since(began)
	}
	return a
}

var errNotSent = errors.New("not sent")

// read takes the stripe of a 200. The node is not trusted: not for the length,
// the checksum, or what it answers to.
func (c *Client) read(a *answer, res *http.Response, want StripeID) {
	a.tag = validTag(res.Header.Get("ETag"))
	most := HeaderSize + (chunk.MaxSize+int64(want.K)-1)/int64(want.K)
	if res.ContentLength <= HeaderSize || res.ContentLength > most {
		a.what, a.err = bad, fmt.Errorf("stripe %s of %d bytes, want %d at most", want, res.ContentLength, most)
		return
	}
	buf := c.buffers.get(int(res.ContentLength))
	if _, err := io.ReadFull(res.Body, *buf); err != nil {
		c.buffers.put(buf)
		a.err = fmt.Errorf("stripe %s: %w", want, err)
		return
	}
	drain(res) // the end: it frees the connection
	s, err := ParseStripe(*buf)
	if err == nil && s.ID() != want {
		err = fmt.Errorf("zone: %w: asked for stripe %s, got %s", chunk.ErrCorrupt, want, s.ID())
	}
	if err != nil {
		if a.tag == "" {
			a.tag = ETag(*buf)
		}
		c.buffers.put(buf)
		a.what, a.err = bad, err
		return
	}
	a.what, a.stripe, a.buf, a.tag = good, s, buf, ETag(*buf)
}

// validTag gives a tag if it is the form of ours.
func validTag(tag string) string {
	if len(tag) != len(`"01234567"`) || tag[0] != '"' || tag[9] != '"' || strings.Trim(tag[1:9], "0123456789abcdef") != "" {
		return ""
	}
	return tag
}

// drain reads a little more, so that the connection can be used again.
func drain(res *http.Response) { _, _ = io.CopyN(io.Discard, res.Body, drainable) }

// request is one to be sent through the transport alone: no redirects, no
// cookies, no proxies.
type request struct{ *http.Request }

func (c *Client) request(ctx context.Context, method, addr string, id StripeID) request {
	scheme := "http"
	if c.o.TLS != nil {
		scheme = "https"
	}
	r := &http.Request{
		Method: method, URL: &url.URL{Scheme: scheme, Host: addr, Path: id.Path()}, Host: addr,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: c.plain,
	}
	return request{r.WithContext(ctx)}
}

// with sets headers, which are not written to, and the query.
func (r request) with(h http.Header, query string) *http.Request {
	r.Header, r.URL.RawQuery = h, query
	return r.Request
}

// upload puts one stripe. It reports whether the node has it now. A node that
// has another under this ID keeps it, unless match is its tag.
func (c *Client) upload(ctx context.Context, to *node, s Stripe, match string) error {
	ctx, cancel := context.WithTimeout(ctx, putDeadlines*c.o.Deadline)
	defer cancel()
	header := c.plain.Clone()
	if match == "" {
		header.Set("If-None-Match", "*")
	} else {
		header.Set("If-Match", match)
	}
	r := c.request(ctx, http.MethodPut, to.addr, s.ID()).with(header, "")
	front := s.header()
	r.ContentLength = int64(len(front) + len(s.Payload))
	r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(front[:]), bytes.NewReader(s.Payload)))
	res, err := c.transport.RoundTrip(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	drain(res)
	switch res.StatusCode {
	case http.StatusOK, http.StatusCreated, http.StatusNoContent:
		return nil
	case http.StatusPreconditionFailed:
		return fmt.Errorf("%s: %w", to.addr, errAnother)
	}
	return fmt.Errorf("%s: answered %d to a stripe", to.addr, res.StatusCode)
}

// errAnother says that the node has other bytes under that ID.
var errAnother = errors.New("has another stripe of that ID")

// tagOf asks a node for the tag of what it has.
func (c *Client) tagOf(ctx context.Context, to *node, id StripeID) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.Deadline)
	defer cancel()
	res, err := c.transport.RoundTrip(c.request(ctx, http.MethodHead, to.addr, id).Request)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	tag := validTag(res.Header.Get("ETag"))
	if res.StatusCode != http.StatusOK || tag == "" {
		return "", fmt.Errorf("%s: answered %d, ETag %.20q", to.addr, res.StatusCode, tag)
	}
	return tag, nil
}

// buffers are pools of stripes' bytes, by the power of two that holds them:
// five of 128 KiB for each chunk would keep the collector busy.
type buffers [bits.UintSize]sync.Pool

// get gives size bytes, HeaderSize + 1 to MaxStripe.
func (b *buffers) get(size int) *[]byte {
	class := bits.Len(uint(size - HeaderSize - 1))
	buf, ok := b[class].Get().(*[]byte)
	if !ok {
		fresh := make([]byte, HeaderSize+1<<class)
		buf = &fresh
	}
	*buf = (*buf)[:size]
	return buf
}

func (b *buffers) put(buf *[]byte) {
	if buf != nil {
		b[bits.Len(uint(cap(*buf)-HeaderSize-1))].Put(buf)
	}
}
