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

// statusOf is the status for an error.
func statusOf(err error) int {
	switch {
	case errors.Is(err, errBusy), errors.Is(err, errExists):
		return http.StatusConflict
	case errors.Is(err, errGone):
		return http.StatusGone
	case errors.Is(err, errFull), errors.Is(err, errMemory), errors.Is(err, errDisk), errors.Is(err, errClosed):
		return http.StatusTooManyRequests
	case errors.Is(err, ErrNoImage):
		return http.StatusBadGateway
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
	case v.Memory < 64 || v.Memory > 32768:
		return fmt.Errorf("memory of %d MB: want 64 to 32768", v.Memory)
	case v.Tmp < 64 || v.Tmp > 10240:
		return fmt.Errorf("/tmp of %d MB: want 64 to 10240", v.Tmp)
	case v.Timeout < time.Millisecond || v.Timeout > 15*time.Minute:
		return fmt.Errorf("timeout of %v: want up to 15 minutes", v.Timeout)
	}
	return nil
}

const idLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

// payloads are kept buffers of invokes; larger ones are left to the collector.
type payloads struct{ pool sync.Pool }

const keptPayload = 64 << 10

func (p *payloads) get() *bytes.Buffer {
	if b, ok := p.pool.Get().(*bytes.Buffer); ok {
		return b
	}
	return &bytes.Buffer{}
}

func (p *payloads) put(b *bytes.Buffer) {
	if b != nil && b.Cap() <= keptPayload {
		b.Reset()
		p.pool.Put(b)
	}
}

func (w *Worker) serveInvoke(rw http.ResponseWriter, r *http.Request) {
	i := w.find(r.PathValue("id"))
	if i == nil {
		err := w.history.failure(r.PathValue("id"))
		refuse(rw, statusOf(err), err)
		return
	}
	c, ctx, cancel, err := newCall(rw, r)
	if err != nil {
		refuse(rw, http.StatusBadRequest, err)
		return
	}
	defer cancel()
	if err := i.claim(ctx, c); err != nil {
		refuse(rw, statusOf(err), err)
		return
	}
	c.payload = w.payloads.get()
	defer func() { w.payloads.put(c.payload) }()
	if n := r.ContentLength; n > 0 && n <= invokewire.MaxPayload {
		c.payload.Grow(int(n) + bytes.MinRead)
	}
	if _, err := c.payload.ReadFrom(http.MaxBytesReader(rw, r.Body, invokewire.MaxPayload)); err != nil {
		i.abandon(c)
		refuse(rw, http.StatusRequestEntityTooLarge, err)
		return
	}
	err = i.run(ctx, c)
	c.out.close()
	if err != nil {
		refuse(rw, statusOf(err), err)
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

func (w *Worker) serveEnd(rw http.ResponseWriter, r *http.Request) {
	if i := w.find(r.PathValue("id")); i != nil {
		if err := w.end(r.Context(), i, r.URL.Query().Has("force")); err != nil {
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
	if err != nil {
		refuse(rw, http.StatusBadRequest, errors.New("since and limit are numbers"))
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
