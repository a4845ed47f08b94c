package tests3

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"thaw/internal/faults"
)

// Front is a server of its own before a Server: it passes requests on, breaks
// or delays those that a rule picks, and counts. It is safe for concurrent use.
type Front struct {
	URL string // http://host:port

	mu    sync.Mutex // guards what follows
	rule  faults.Rule
	seen  Seen
	now   int // requests under way
	gets  int // of now
	asked map[string]bool
}

// Seen is what a Front has been asked. Gets are those of objects whose keys hold
// the text given to Front.
type Seen struct {
	Requests, Gets             int
	MostAtOnce, MostGetsAtOnce int      // under way
	Asked                      []string // the paths of the gets, each once, sorted
}

// Handler passes requests on to the server, which checks the signatures: the
// caller has signed for its own address.
func (s *Server) Handler(t testing.TB) http.Handler {
	t.Helper()
	target, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 256} // or each request would have a connection of its own
	t.Cleanup(transport.CloseIdleConnections)
	return &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host
			r.Out.Host = r.In.Host // it is signed
		},
		// What breaks behind breaks before: the server hangs up while a body is
		// sent that it does not want.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
}

// Front starts a Front for the time of the test. No rule is no faults. Gets are
// counted of keys that hold the text, such as "/chunks/".
func (s *Server) Front(t testing.TB, rule faults.Rule, of string) *Front {
	t.Helper()
	f := &Front{rule: rule, asked: map[string]bool{}}
	broken := faults.Handler(s.Handler(t), func(call int64, r *http.Request) (faults.Fault, bool) {
		f.mu.Lock()
		rule := f.rule
		f.mu.Unlock()
		if rule == nil {
			return faults.Fault{}, false
		}
		return rule(call, r)
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		get := r.Method == http.MethodGet && strings.Contains(r.URL.Path, of)
		f.enter(r.URL.Path, get)
		defer f.leave(get)
		broken.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	f.URL = server.URL
	return f
}

func (f *Front) enter(path string, get bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now++
	f.seen.Requests++
	f.seen.MostAtOnce = max(f.seen.MostAtOnce, f.now)
	if get {
		f.gets++
		f.seen.Gets++
		f.seen.MostGetsAtOnce = max(f.seen.MostGetsAtOnce, f.gets)
		f.asked[path] = true
	}
}

func (f *Front) leave(get bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now--
	if get {
		f.gets--
	}
}

// Set has another rule in force.
func (f *Front) Set(rule faults.Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rule = rule
}

// Seen gives the numbers since the last call of Forget.
func (f *Front) Seen() Seen {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.seen
	s.Asked = slices.Sorted(maps.Keys(f.asked))
	return s
}

// Forget counts anew.
func (f *Front) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = Seen{MostAtOnce: f.now, MostGetsAtOnce: f.gets}
	clear(f.asked)
}
