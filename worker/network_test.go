package worker

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"thaw/invokewire"
	"thaw/network"
)

// reaches has a function ask, again as long as a server takes longer to answer
// than the function waits, which the machine may be to blame for.
func (r *rig) reaches(id, do, url string) (v told, got said) {
	r.t.Helper()
	r.until("the function is answered", func() bool {
		v, got = r.ask(id, "r1", do)
		return !strings.Contains(v.Get[url], "deadline exceeded")
	})
	return v, got
}

// A function with a network reaches what a door leads to, one without reaches
// nothing, and neither the worker itself.
func TestEgress(t *testing.T) {
	needRoot(t)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the API") }))
	defer api.Close()
	dir := t.TempDir()
	n, err := network.Open(network.Options{State: filepath.Join(dir, "net"), Run: filepath.Join(dir, "run"), Doors: map[uint16]string{9000: strings.TrimPrefix(api.URL, "http://")}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	r := newRig(t, func(o *Options) { o.Network = n })
	gateway, err := n.Gateway()
	if err != nil {
		t.Fatal(err)
	}
	door := "http://" + gateway.String() + ":9000/"
	ask := `{"get":["` + door + `","` + r.url + `/healthz"],"files":["/etc/resolv.conf"]}`
	r.start("out", "", spec(func(s *invokewire.Spec) { s.Egress = true }))
	v, said := r.reaches("out", ask, door)
	if got := v.Get[door]; !strings.HasPrefix(got, "200") || !strings.Contains(got, "the API") {
		t.Errorf("%q, %+v", got, said)
	}
	if got := v.Get[r.url+"/healthz"]; !strings.HasPrefix(got, "error") {
		t.Errorf("it reaches the worker: %q", got)
	}
	if !strings.Contains(v.Files["/etc/resolv.conf"], "nameserver "+gateway.String()) {
		t.Error(v.Files)
	}
	r.start("in", "", spec(nil))
	if v, said := r.ask("in", "r1", ask); !strings.HasPrefix(v.Get[door], "error") {
		t.Errorf("%+v, %+v", v.Get, said)
	}
	if err := r.stop(); err != nil { // before the network
		t.Error(err)
	}
}
