package worker

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"thaw/agent"
	"thaw/invokewire"
	"thaw/text"
)

// maxStart bounds the JSON of a start: variables are 4 KiB, words of ImageConfig
// 1500 each.
const maxStart = 1 << 20

// Handler answers the worker's part of invokewire, and GET /healthz. For who
// measures, there are GET /starts, how the last instances were started, and
// POST /empty, which ends what is idle (Emptied).
func (w *Worker) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /instances", w.serveStart)
	mux.HandleFunc("POST /instances/{id}/invoke", w.serveInvoke)
	mux.HandleFunc("GET /instances/{id}/ready", w.serveReady)
	mux.HandleFunc("DELETE /instances/{id}", w.serveEnd)
	mux.HandleFunc("GET /state", func(rw http.ResponseWriter, _ *http.Request) { reply(rw, http.StatusOK, w.state(true)) })
	mux.HandleFunc("GET /starts", func(rw http.ResponseWriter, _ *http.Request) { reply(rw, http.StatusOK, w.history.list()) })
	mux.HandleFunc("POST /empty", w.serveEmpty)
	mux.HandleFunc("GET /pins", w.servePins)
	mux.HandleFunc("GET /logs", w.serveLogs)
	mux.HandleFunc("GET /logs/streams", w.serveStreams)
	inner := http.NewServeMux()
	inner.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "ok\n") })
	inner.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get(invokewire.HeaderToken)), []byte(w.o.Token)) != 1 {
			refuse(rw, http.StatusForbidden, errors.New("not a member of the fleet: "+invokewire.HeaderToken+" is missing or wrong"))
			return
		}
		mux.ServeHTTP(rw, r)
	})
	return inner
}

// reply sends JSON.
func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // who has hung up misses it
}

// refuse sends an error in one line.
func refuse(w http.ResponseWriter, status int, err error) {
	reply(w, status, map[string]string{"error": text.Line(err.Error())})
}

// errPayload says that an invoke's payload has not come whole, or is too long.
var errPayload = errors.New("the payload cannot be read")

// statusOf is the status for an error.
func statusOf(err error) int {
	switch {
	case errors.Is(err, errBusy), errors.Is(err, errExists):
		return http.StatusConflict
	case errors.Is(err, errGone):
		return http.StatusGone
	case errors.Is(err, errFull), errors.Is(err, errMemory), errors.Is(err, errDisk), errors.Is(err, errClosed):
		return http.StatusTooManyRequests
	case errors.Is(err, errPayload):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, ErrNoImage), errors.Is(err, agent.ErrLost):
		return http.StatusBadGateway
	case errors.Is(err, errEnded):
		return http.StatusUnprocessableEntity
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

func (w *Worker) serveStart(rw http.ResponseWriter, r *http.Request) {
	var s invokewire.Start
	d := json.NewDecoder(http.MaxBytesReader(rw, r.Body, maxStart))
	d.DisallowUnknownFields()
	err := d.Decode(&s)
	if err != nil { // without its text, which may quote a secret
		err = errors.New("not a start in JSON")
	} else {
		err = checkStart(&s)
	}
	if err != nil {
		refuse(rw, http.StatusBadRequest, err)
		return
	}
	if err := w.start(s); err != nil {
		refuse(rw, statusOf(err), err)
		return
	}
	rw.WriteHeader(http.StatusAccepted)
}

// checkStart refuses what no manager should ask.
func checkStart(s *invokewire.Start) error {
	v := &s.Spec
	switch {
	case s.ID == "" || len(s.ID) > 128 || strings.Trim(s.ID, idLetters) != "":
		return fmt.Errorf("instance id %q: want letters, digits, - and _", s.ID)
	case s.Force != "" && s.Force != invokewire.StartFull && s.Force != invokewire.StartPartial:
		return fmt.Errorf("start %q: want %s or %s", s.Force, invokewire.StartFull, invokewire.StartPartial)
	case v.Account == "" || v.Function == "" || v.Version == "" || v.Image == "" || v.Tenant == "":
		return errors.New("a start without account, function, version, image or tenant")
	case v.Memory < 64 || v.Memory > 10240:
		return fmt.Errorf("memory of %d MB: want 64 to 10240", v.Memory)
	case v.Tmp < 64 || v.Tmp > 10240:
		return fmt.Errorf("/tmp of %d MB: want 64 to 10240", v.Tmp)
	case v.Timeout < time.Millisecond || v.Timeout > 15*time.Minute:
		return fmt.Errorf("timeout of %v: want up to 15 minutes", v.Timeout)
	}
	return nil
}

const idLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

// payloads lends memory to invokes on their way from the frontend to the
// function. Long ones take turns: each is here for as long as the copy takes.
type payloads struct {
	small, large sync.Pool
	turns        chan struct{} // one for each long payload that is here
	// How long a long one may take to come, and to be handed on.
	coming, handing time.Duration
}

const (
	// smallPayload is the longest that needs no turn, in bytes.
	smallPayload = 64 << 10
	// largePayloads bounds the long ones: four of 6 MiB fill a machine's memory bus.
	largePayloads = 4
	// payloadTime is for a frontend, which has it whole, to send a long one, and
	// again for thaw-init to take it: a tenth of a processor needs less than 1 s.
	payloadTime = time.Minute
)

func newPayloads() payloads {
	return payloads{turns: make(chan struct{}, largePayloads), coming: payloadTime, handing: payloadTime}
}

// get gives a buffer for so many bytes (-1: nobody knows how many), in its turn.
func (p *payloads) get(ctx context.Context, n int64) (*payload, error) {
	b := &payload{of: p, large: n < 0 || n > smallPayload}
	pool := &p.small
	if b.large {
		select {
		case p.turns <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		pool = &p.large
	}
	b.bytes, _ = pool.Get().(*bytes.Buffer)
	if b.bytes == nil {
		b.bytes = new(bytes.Buffer)
	}
	if n > 0 {
		b.bytes.Grow(int(n) + bytes.MinRead)
	}
	return b, nil
}

// payload is one that is on its way.
type payload struct {
	of    *payloads
	bytes *bytes.Buffer
	large bool
	// yielded: it has no turn any more.
	yielded bool
}

// yield lets others have the turn: the payload is not on its way just now.
func (p *payload) yield() {
	if p.large && !p.yielded {
		p.yielded = true
		<-p.of.turns
	}
}

// done gives the memory back.
func (p *payload) done() {
	p.bytes.Reset()
	if p.large {
		p.of.large.Put(p.bytes)
		p.yield()
	} else {
		p.of.small.Put(p.bytes)
	}
}

// refuseInvoke is refuse for a request whose payload may not have been read: a
// frontend sends it all before it looks for an answer.
func refuseInvoke(w http.ResponseWriter, payload io.Reader, status int, err error) {
	_, _ = io.Copy(io.Discard, payload) // or it is too long, and cut off
	refuse(w, status, err)
}

func (w *Worker) serveInvoke(rw http.ResponseWriter, r *http.Request) {
	body := http.MaxBytesReader(rw, r.Body, invokewire.MaxPayload)
	i, err := w.lookUp(r)
	if err != nil {
		refuseInvoke(rw, body, statusOf(err), err)
		return
	}
	c, ctx, cancel, err := newCall(rw, r)
	if err != nil {
		refuseInvoke(rw, body, http.StatusBadRequest, err)
		return
	}
	defer cancel()
	if err := i.claim(ctx, c); err != nil {
		refuseInvoke(rw, body, statusOf(err), err)
		return
	}
	err = i.run(ctx, c, func(ctx context.Context) (*payload, error) {
		p, err := w.payloads.get(ctx, min(r.ContentLength, invokewire.MaxPayload))
		if err != nil {
			return nil, err
		}
		if p.large {
			control := http.NewResponseController(rw)
			_ = control.SetReadDeadline(time.Now().Add(p.of.coming)) // servers of tests cannot
			defer func() { _ = control.SetReadDeadline(time.Time{}) }()
		}
		if _, err := p.bytes.ReadFrom(body); err != nil {
			p.done()
			return nil, fmt.Errorf("%w: %w", errPayload, err)
		}
		return p, nil
	})
	if c.out.close() {
		panic(http.ErrAbortHandler) // it hangs up
	}
	if err != nil {
		refuseInvoke(rw, body, statusOf(err), err)
		return
	}
	h := rw.Header()
	h.Set(http.TrailerPrefix+invokewire.HeaderStart, c.kind)
	h.Set(http.TrailerPrefix+invokewire.HeaderStream, i.log.name)
	if c.tail {
		h.Set(http.TrailerPrefix+invokewire.HeaderLogTail, base64.StdEncoding.EncodeToString(c.text))
		h.Set(http.TrailerPrefix+invokewire.HeaderBilled, strconv.FormatInt(c.billed, 10))
	}
}

// newCall reads an invoke's headers. ctx ends when the caller gives up, not when
// it hangs up.
func newCall(rw http.ResponseWriter, r *http.Request) (*call, context.Context, context.CancelFunc, error) {
	h := r.Header
	c := &call{
		invoke: invokewire.Invoke{
			RequestID: h.Get(invokewire.HeaderRequestID), ARN: h.Get(invokewire.HeaderARN), Trace: h.Get(invokewire.HeaderTrace),
			Streaming: h.Get(invokewire.HeaderStreaming) == "1",
		},
		tail: h.Get(invokewire.HeaderLogType) == "Tail", out: &answer{w: rw}, answered: make(chan struct{}), done: make(chan struct{}),
	}
	if id := c.invoke.RequestID; id == "" || len(id) > 128 || strings.Trim(id, idLetters) != "" {
		return nil, nil, nil, fmt.Errorf("%s %q: want letters, digits, - and _", invokewire.HeaderRequestID, id)
	}
	c.out.id = c.invoke.RequestID
	if text := h.Get(invokewire.HeaderClientContext); text != "" {
		decoded, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, nil, nil, errors.New(invokewire.HeaderClientContext + " is not base64")
		}
		c.invoke.ClientContext = string(decoded)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	if text := h.Get(invokewire.HeaderDeadline); text != "" {
		ms, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			cancel()
			return nil, nil, nil, errors.New(invokewire.HeaderDeadline + " is no number of milliseconds")
		}
		cancel()
		ctx, cancel = context.WithDeadline(context.WithoutCancel(r.Context()), time.UnixMilli(ms))
	}
	return c, ctx, cancel, nil
}

// lookUp finds the instance that a request names, or why it is not there.
func (w *Worker) lookUp(r *http.Request) (*instance, error) {
	id := r.PathValue("id")
	if i := w.find(id); i != nil {
		return i, nil
	}
	return nil, w.history.failure(id)
}

// serveReady answers once an instance's start is over.
func (w *Worker) serveReady(rw http.ResponseWriter, r *http.Request) {
	i, err := w.lookUp(r)
	if err != nil {
		refuse(rw, statusOf(err), err)
		return
	}
	select {
	case <-i.ready:
	case <-r.Context().Done():
		return
	}
	if i.failed != nil {
		refuse(rw, statusOf(i.failed), i.failed)
		return
	}
	rw.WriteHeader(http.StatusNoContent)
}

func (w *Worker) serveEnd(rw http.ResponseWriter, r *http.Request) {
	if i := w.find(r.PathValue("id")); i != nil {
		q := r.URL.Query()
		var err error
		if q.Has("queued") {
			err = w.withdraw(r.Context(), i)
		} else {
			err = w.end(r.Context(), i, q.Has("force"))
		}
		if err != nil {
			refuse(rw, statusOf(err), err)
			return
		}
	}
	rw.WriteHeader(http.StatusNoContent)
}

func (w *Worker) serveStreams(rw http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	all, err := w.logs.streams(q.Get("account"), q.Get("function"))
	if err != nil {
		refuse(rw, http.StatusBadRequest, err)
		return
	}
	reply(rw, http.StatusOK, all)
}

// serveLogs sends lines of a log, and with follow those that come.
func (w *Worker) serveLogs(rw http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	q := query{account: v.Get("account"), function: v.Get("function"), stream: v.Get("stream"), follow: v.Has("follow")}
	var err error
	if s := v.Get("since"); s != "" {
		q.since, err = strconv.ParseInt(s, 10, 64)
	}
	if s := v.Get("limit"); s != "" && err == nil {
		q.limit, err = strconv.Atoi(s)
	}
	if s := v.Get("until"); s != "" && err == nil {
		q.until, err = strconv.ParseInt(s, 10, 64)
	}
	if err != nil {
		refuse(rw, http.StatusBadRequest, errors.New("since, until and limit are numbers"))
		return
	}
	if _, err := w.logs.folder(q.account, q.function); err != nil {
		refuse(rw, http.StatusBadRequest, err)
		return
	}
	if q.follow {
		if w.followers.Add(1) > mostFollowers {
			w.followers.Add(-1)
			refuse(rw, http.StatusTooManyRequests, errors.New("too many follow logs already"))
			return
		}
		defer w.followers.Add(-1)
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(w.life, cancel)()
	rw.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(rw)
	err = w.logs.read(ctx, q, func(events []invokewire.LogEvent) error {
		for _, e := range events {
			if err := out.Encode(e); err != nil {
				return err
			}
		}
		return http.NewResponseController(rw).Flush()
	})
	if err != nil && ctx.Err() == nil {
		w.log.Warn("reading a log", "cause", err)
	}
}

// mostFollowers bounds those who follow logs at a time.
const mostFollowers = 64
