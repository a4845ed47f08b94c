package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"thaw/zone"
)

// Handler serves the zone's requests over any protocol of net/http. Serve does
// the same, and over plain HTTP/1.1 with less work.
func (n *Node) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+zone.StripesPath, n.serveGet) // HEAD too
	mux.HandleFunc("PUT "+zone.StripesPath, n.servePut)
	mux.HandleFunc("POST "+zone.HavePath, n.serveHave)
	mux.HandleFunc("POST /drain", func(w http.ResponseWriter, _ *http.Request) {
		n.Drain()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(n.Stats()) // the client has gone
	})
	mux.Handle("GET /metrics", n.metrics())
	return mux
}

// parseAsk reads what a GET wants to know of a lease.
func parseAsk(token, wait string) (ask, error) {
	a := ask{token: token}
	if len(token) > zone.MaxToken {
		return a, fmt.Errorf("%s: more than %d bytes", zone.LeaseHeader, zone.MaxToken)
	}
	if wait == "" {
		return a, nil
	}
	ms, err := strconv.ParseUint(wait, 10, 31)
	if a.wait = time.Duration(ms) * time.Millisecond; err != nil || a.wait > zone.MaxWait {
		return a, fmt.Errorf("wait: want milliseconds, %d at most", zone.MaxWait.Milliseconds())
	}
	return a, nil
}

func (n *Node) serveGet(w http.ResponseWriter, r *http.Request) {
	id, err := zone.ParsePath(r.URL.Path)
	var a ask
	if err == nil {
		a, err = parseAsk(r.Header.Get(zone.LeaseHeader), r.URL.Query().Get("wait"))
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if r.Method == http.MethodHead {
		a = ask{} // it asks whether, not for
	}
	var f found
	res, err := n.get(id, a, r.Context().Done(), &f)
	switch {
	case err != nil:
		n.busy(w, err)
		return
	case !res.found:
		if res.asked {
			w.Header().Set(zone.LeaseHeader, res.lease.String())
		}
		w.WriteHeader(http.StatusNotFound)
		return
	}
	defer n.release(&f)
	h := w.Header()
	h["Content-Type"] = []string{"application/octet-stream"}
	h["Content-Length"] = []string{strconv.Itoa(zone.HeaderSize + f.size)}
	h["Etag"] = []string{zone.ETag(f.head[:])}
	if r.Method == http.MethodHead {
		return
	}
	if err := n.copyOut(&f); err != nil {
		delete(h, "Content-Length")
		delete(h, "Etag")
		n.busy(w, err)
		return
	}
	if _, err := w.Write(f.head[:]); err != nil {
		return // the client has gone
	}
	if _, err := w.Write(f.payload); err == nil {
		n.sent(&f, res)
	}
}

// copyOut gets a stripe of memory into a buffer, for connections to which
// memory cannot be lent.
func (n *Node) copyOut(f *found) error {
	if !f.pinned {
		return nil
	}
	buf, err := n.buffers.get()
	if err != nil {
		return err
	}
	f.buffer, f.payload, buf.used = buf, buf.b[:f.size], f.size
	return n.mem.arena.read(f.slot, f.payload, 0)
}

// sent counts a stripe that has gone out.
func (n *Node) sent(f *found, res answer) {
	n.counts.sentBytes.Add(uint64(zone.HeaderSize + f.size))
	switch {
	case res.waited: // most of that was an origin's time
	case f.pinned:
		n.counts.getMemory.Since(f.began)
	default:
		n.counts.getFlash.Since(f.began)
	}
}

// busy says that a bound was reached, or that the node has failed.
func (n *Node) busy(w http.ResponseWriter, err error) {
	if !errors.Is(err, errBusy) {
		n.options.Warn(err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	n.counts.busy.Add(1)
	w.Header().Set("Retry-After", "1")
	http.Error(w, err.Error(), http.StatusServiceUnavailable)
}

// statusOf gives the HTTP status of an outcome.
func (o outcome) status() int {
	return [...]int{
		stored: http.StatusCreated, had: http.StatusOK, differs: http.StatusPreconditionFailed,
		refused: http.StatusServiceUnavailable, noRoom: http.StatusInsufficientStorage,
		tooBusy: http.StatusServiceUnavailable, bad: http.StatusBadRequest,
	}[o]
}

// precondition reads the conditions of a PUT: that nothing is there, which is
// the default, or that a copy with that ETag is.
func precondition(ifMatch, ifNoneMatch string) (tag string, err error) {
	switch {
	case ifMatch == "" && (ifNoneMatch == "" || ifNoneMatch == "*"):
		return "", nil
	case ifNoneMatch == "" && len(ifMatch) == len(`"01234567"`) && ifMatch[0] == '"' && ifMatch[9] == '"':
		return ifMatch, nil
	}
	return "", errors.New(`want If-None-Match: * or If-Match: "8 hex digits"`)
}

func (n *Node) servePut(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	id, err := zone.ParsePath(r.URL.Path)
	var match string
	if err == nil {
		match, err = precondition(r.Header.Get("If-Match"), r.Header.Get("If-None-Match"))
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if r.ContentLength > zone.MaxStripe {
		http.Error(w, fmt.Sprintf("a stripe has at most %d bytes", zone.MaxStripe), http.StatusRequestEntityTooLarge)
		return
	}
	buf, err := n.buffers.get()
	if err != nil {
		n.busy(w, err)
		return
	}
	defer n.buffers.put(buf)
	size, err := io.ReadFull(r.Body, buf.b[:zone.MaxStripe+1])
	buf.used = size
	switch {
	case err == nil:
		http.Error(w, fmt.Sprintf("a stripe has at most %d bytes", zone.MaxStripe), http.StatusRequestEntityTooLarge)
		return
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF), r.ContentLength >= 0 && int64(size) != r.ContentLength:
		http.Error(w, "the body ended early", http.StatusBadRequest)
		return
	}
	out, err := n.put(id, buf.b[:size], match)
	n.counts.put.Since(began)
	if out == tooBusy || out == refused {
		w.Header().Set("Retry-After", "1")
	}
	if err != nil {
		http.Error(w, err.Error(), out.status())
		return
	}
	w.WriteHeader(out.status())
}

func (n *Node) serveHave(w http.ResponseWriter, r *http.Request) {
	const most = zone.MaxHave * zone.IDSize
	buf, err := n.buffers.get()
	if err != nil {
		n.busy(w, err)
		return
	}
	defer n.buffers.put(buf)
	size, err := io.ReadFull(r.Body, buf.b[:most+1])
	switch {
	case err == nil:
		http.Error(w, fmt.Sprintf("at most %d stripes at once", zone.MaxHave), http.StatusRequestEntityTooLarge)
		return
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF) && (r.ContentLength < 0 || int64(size) == r.ContentLength):
		err = nil
	}
	body := buf.b[:size]
	if err == nil && size%zone.IDSize != 0 {
		err = fmt.Errorf("want %d bytes for each stripe", zone.IDSize)
	}
	answers := make([]byte, 0, len(body)/zone.IDSize)
	for ; err == nil && len(body) > 0; body = body[zone.IDSize:] {
		var id zone.StripeID
		if id, err = zone.ParseID(body[:zone.IDSize]); err == nil && n.have(id) {
			answers = append(answers, 1)
		} else {
			answers = append(answers, 0)
		}
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(answers) // the client has gone
}
