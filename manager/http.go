package manager

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"thaw/invokewire"
)

const (
	// maxBody bounds a request: 20,000 ids of 32 characters.
	maxBody = 1 << 20
	// maxAvoid bounds the instances to avoid: a frontend asks after a few.
	maxAvoid = 64
	// maxFailed bounds the starts that have failed: a frontend tries a few.
	maxFailed = 8
	// acquireTime bounds how long a request waits for workers to report.
	acquireTime = 30 * time.Second
)

// Handler serves frontends and operators.
func (m *Manager) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /acquire", m.serveAcquire)
	mux.HandleFunc("POST /renew", m.serveRenew)
	mux.HandleFunc("POST /release", m.serveRelease)
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, m.table.state())
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get(invokewire.HeaderToken)), []byte(m.options.Token)) != 1 {
			fail(w, http.StatusForbidden, errors.New("wrong or no "+invokewire.HeaderToken+": all roles of a fleet share one token"))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		mux.ServeHTTP(w, r)
	})
}

func (m *Manager) serveAcquire(w http.ResponseWriter, r *http.Request) {
	var a invokewire.Acquire
	if !read(w, r, &a) {
		return
	}
	if err := check(&a); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), acquireTime)
	defer cancel()
	lease, err := m.acquire(ctx, &a)
	m.counted.acquired(lease, err)
	var throttle *invokewire.Throttle
	var elsewhere *misdirected
	switch {
	case err == nil:
		answer(w, http.StatusOK, lease)
	case errors.As(err, &throttle):
		answer(w, http.StatusTooManyRequests, throttle)
	case errors.As(err, &elsewhere):
		answer(w, http.StatusMisdirectedRequest, invokewire.Misdirected{Owner: elsewhere.owner})
	default:
		fail(w, http.StatusServiceUnavailable, err)
	}
}

// check refuses what no frontend would ask for.
func check(a *invokewire.Acquire) error {
	s := &a.Spec
	switch {
	case a.Frontend == "" || len(a.Frontend) > 128:
		return errors.New("frontend: want 1 to 128 bytes")
	case s.Account == "" || s.Function == "" || s.Version == "" || len(s.Key()) > 512:
		return errors.New("spec: want an account, a function and a version")
	case s.Memory <= 0 || s.Memory > 1<<20:
		return fmt.Errorf("spec: memory of %d MB", s.Memory)
	case len(a.Avoid) > maxAvoid:
		return fmt.Errorf("avoid: more than %d instances", maxAvoid)
	case len(a.Failed) > maxFailed:
		return fmt.Errorf("failed: more than %d starts", maxFailed)
	}
	return nil
}

// serveRenew keeps leases. Instances of functions that another manager owns
// have none here.
func (m *Manager) serveRenew(w http.ResponseWriter, r *http.Request) {
	var a invokewire.Renew
	if !read(w, r, &a) {
		return
	}
	var mine, gone []string
	for f, ids := range m.table.functionsOf(a.Instances) {
		var elsewhere *misdirected
		var err error
		if f != (function{}) {
			err = m.own(r.Context(), f)
		}
		if errors.As(err, &elsewhere) {
			gone = append(gone, ids...)
			continue
		}
		if err != nil { // nobody else can have it either
			m.options.Log.Debug("renewing leases", "function", f.name, "error", err)
		}
		mine = append(mine, ids...)
	}
	gone = append(gone, m.table.renew(a.Frontend, mine, time.Now())...)
	answer(w, http.StatusOK, invokewire.Renewed{Gone: gone})
}

func (m *Manager) serveRelease(w http.ResponseWriter, r *http.Request) {
	var a invokewire.Release
	if !read(w, r, &a) {
		return
	}
	m.table.release(a, time.Now())
	w.WriteHeader(http.StatusNoContent)
}

func read(w http.ResponseWriter, r *http.Request, v any) bool {
	if err := json.NewDecoder(r.Body).Decode(v); err != nil {
		fail(w, http.StatusBadRequest, fmt.Errorf("body: %w", err))
		return false
	}
	return true
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has gone
}

func fail(w http.ResponseWriter, status int, err error) {
	answer(w, status, map[string]string{"error": err.Error()})
}
