package frontend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"thaw/cluster"
	"thaw/functions"
	"thaw/invokewire"
)

const (
	// managerTime bounds one request to a manager, which may wait for workers to
	// report after a restart.
	managerTime = 35 * time.Second
	// managerPatience is how long a request looks for a manager that answers:
	// long enough for one to be started anew.
	managerPatience = 20 * time.Second
	// managerPause is between rounds of looking.
	managerPause = 100 * time.Millisecond
	// maxOwners bounds what is remembered of who owns which function.
	maxOwners = 1 << 16
	// maxReply bounds an answer of a manager: all leases of a frontend.
	maxReply = 4 << 20
)

// managers finds the manager of a function. Any may be asked: one that does
// not own the function names the one that does.
type managers struct {
	client *http.Client
	token  string

	mu     sync.Mutex
	known  map[string]string // address by id, of those that are registered
	left   map[string]string // of those that were, until they do not answer
	owners map[functions.ID]string
}

func newManagers(c *http.Client, token string) *managers {
	return &managers{client: c, token: token, known: map[string]string{}, left: map[string]string{}, owners: map[functions.ID]string{}}
}

// tell takes what the cluster says of managers.
func (m *managers) tell(c cluster.Change) error {
	if c.Synced {
		return nil
	}
	id := strings.TrimPrefix(c.Key, "managers/")
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !c.Deleted:
		m.known[id] = string(c.Value)
		delete(m.left, id)
	case m.known[id] != "":
		m.left[id] = m.known[id]
		delete(m.known, id)
	}
	return nil
}

// candidates gives ids of managers to ask, the likeliest owner first, then by
// rendezvous: all frontends begin with the same one.
func (m *managers) candidates(f functions.ID) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	rank := func(id string) uint64 {
		h := fnv.New64a()
		_, _ = h.Write([]byte(id + "\x00" + f.String()))
		return h.Sum64()
	}
	sorted := func(set map[string]string) []string {
		ids := slices.Collect(maps.Keys(set))
		slices.SortFunc(ids, func(a, b string) int {
			if rank(a) > rank(b) {
				return -1
			}
			return 1
		})
		return ids
	}
	list := append(sorted(m.known), sorted(m.left)...)
	if owner := m.owners[f]; owner != "" {
		list = append([]string{owner}, slices.DeleteFunc(list, func(id string) bool { return id == owner })...)
	}
	return list
}

func (m *managers) address(id string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.known[id]; a != "" {
		return a
	}
	return m.left[id]
}

// own notes who owns a function; an empty id forgets it.
func (m *managers) own(f functions.ID, id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.owners) >= maxOwners {
		clear(m.owners)
	}
	delete(m.owners, f)
	if id != "" {
		m.owners[f] = id
	}
}

// silent notes that a manager does not answer.
func (m *managers) silent(f functions.ID, id string) {
	m.own(f, "")
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.left, id)
}

// doubt forgets what a manager owns: it did not answer.
func (m *managers) doubt(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.left, id)
	maps.DeleteFunc(m.owners, func(_ functions.ID, owner string) bool { return owner == id })
}

// errManager says that no manager answered.
var errManager = errors.New("no manager answers: is one running?")

// elsewhere is an answer that names the owner.
type elsewhere struct{ owner string }

func (e *elsewhere) Error() string { return "owned by manager " + e.owner }

// acquire asks for an instance. Its errors are *invokewire.Throttle, and others
// that are the system's.
func (m *managers) acquire(ctx context.Context, a *invokewire.Acquire) (*invokewire.Lease, error) {
	f := functions.ID{Account: a.Spec.Account, Name: a.Spec.Function}
	var lease invokewire.Lease
	return &lease, m.ask(ctx, f, "/acquire", a, &lease)
}

// ask sends a request to a function's manager, and looks for it.
func (m *managers) ask(ctx context.Context, f functions.ID, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	last := errManager
	for began := time.Now(); time.Since(began) < managerPatience; {
		for _, id := range m.candidates(f) {
			err := m.post(ctx, id, path, body, out)
			var throttle *invokewire.Throttle
			var other *elsewhere
			switch {
			case err == nil || errors.As(err, &throttle):
				m.own(f, id)
				return err
			case ctx.Err() != nil:
				return ctx.Err()
			case errors.As(err, &other):
				m.own(f, other.owner)
			default:
				m.silent(f, id)
			}
			last = err
			if other != nil {
				break // begin again with the owner
			}
		}
		select {
		case <-time.After(managerPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return last
}

// post sends one request to one manager.
func (m *managers) post(ctx context.Context, id, path string, body []byte, out any) error {
	address := m.address(id)
	if address == "" {
		return errManager
	}
	ctx, cancel := context.WithTimeout(ctx, managerTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set(invokewire.HeaderToken, m.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := m.client.Do(req)
	if err != nil {
		return fmt.Errorf("manager %s: %w", id, err)
	}
	defer resp.Body.Close()
	reply := json.NewDecoder(io.LimitReader(resp.Body, maxReply))
	switch resp.StatusCode {
	case http.StatusOK:
		return reply.Decode(out)
	case http.StatusNoContent:
		return nil
	case http.StatusTooManyRequests:
		t := new(invokewire.Throttle)
		if err := reply.Decode(t); err != nil {
			return err
		}
		return t
	case http.StatusMisdirectedRequest:
		var o invokewire.Misdirected
		if err := reply.Decode(&o); err != nil {
			return err
		}
		return &elsewhere{o.Owner}
	}
	var e struct{ Error string }
	_ = reply.Decode(&e) // or it says nothing
	return fmt.Errorf("manager %s: %s: status %d: %.200q", id, path, resp.StatusCode, e.Error)
}

// each sends requests about instances, grouped by the manager that is likeliest
// to own their functions. It tells of the answers, and of which ids got none.
func (m *managers) each(ctx context.Context, ids map[string]functions.ID, send func(ctx context.Context, manager string, ids []string)) {
	groups := map[string][]string{}
	for id, f := range ids {
		if c := m.candidates(f); len(c) > 0 {
			groups[c[0]] = append(groups[c[0]], id)
		}
	}
	for manager, list := range groups {
		for chunk := range slices.Chunk(list, maxIDs) {
			send(ctx, manager, chunk)
		}
	}
}

// maxIDs bounds the instances in one request, which a manager takes up to 1 MiB of.
const maxIDs = 10_000
