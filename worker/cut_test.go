package worker

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"thaw/cgroups"
	"thaw/host"
	"thaw/invokewire"
)

// puppets is a worker whose instances have no sandboxes: what their thaw-inits say
// is the test's.
type puppets struct {
	*rig
	host *host.Host
}

func newPuppets(t *testing.T) *puppets {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: instances are run by root")
	}
	h, err := host.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	w := &Worker{
		o: Options{Token: "token", Host: h}, log: log, life: t.Context(), instances: map[string]*instance{}, users: map[string]uint32{},
		logs: newLogStore(t.TempDir(), LogLimits{Total: 1 << 20}, log), history: &history{counts: map[string]uint64{}}, counts: newCounts(), payloads: newPayloads(), limits: limits{reset: patience, stream: streamRate},
		admission: newAdmission(1, 1, nil),
	}
	w.roots = &roots{w: w, all: map[string]*root{}}
	server := httptest.NewServer(w.Handler())
	t.Cleanup(runtime.GC) // other tests look at what the heap takes
	t.Cleanup(w.work.Wait)
	t.Cleanup(server.Close)
	return &puppets{&rig{t: t, w: w, url: server.URL, client: server.Client()}, h}
}

// instance gives an idle one, and the other end of its socket.
func (s *puppets) instance(id string) (*instance, net.Conn) {
	s.t.Helper()
	i, err := s.w.newInstance(invokewire.Start{ID: id, Spec: spec(nil)})
	if err != nil {
		s.t.Fatal(err)
	}
	folder, err := s.host.NewInstance(host.KindFunction, nil, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	ours, file, err := socketpair()
	if err != nil {
		s.t.Fatal(err)
	}
	theirs, err := net.FileConn(file)
	if err != nil {
		s.t.Fatal(err)
	}
	_ = file.Close()
	_ = theirs.SetDeadline(time.Now().Add(patience))
	made := &slot{host: folder, conn: ours, frames: invokewire.NewFrames(ours), group: &cgroups.Group{}}
	i.box = &box{slot: made, w: s.w, root: &root{}}
	i.mu.Lock()
	i.rest()
	i.mu.Unlock()
	close(i.ready)
	s.w.mu.Lock()
	s.w.instances[id] = i
	s.w.mu.Unlock()
	s.w.work.Go(i.read)
	return i, theirs
}

// frames are bytes of a thaw-init.
type frames struct{ bytes.Buffer }

// script gives what writes into frames.
func script(say func(f *invokewire.Frames)) []byte {
	var b frames
	say(invokewire.NewFrames(&b))
	return b.Bytes()
}

// play gives an instance an invoke, of which its thaw-init says some bytes as
// they are; then it obeys resets until it ends, or ends at once.
func (s *puppets) play(id string, said []byte, obey bool, header ...string) heard {
	s.t.Helper()
	i, conn := s.instance(id)
	done := make(chan struct{})
	go func() {
		defer close(done)
		in := invokewire.NewFrames(conn)
		for {
			f, err := in.Read()
			if err != nil {
				return
			}
			switch f.Kind {
			case invokewire.FramePayload:
				if _, err := conn.Write(said); err != nil || !obey {
					_ = conn.Close()
					return
				}
			case invokewire.FrameReset:
				_ = in.Write(invokewire.FrameResetDone, nil)
			}
		}
	}()
	got := s.hear(id, header...)
	_ = conn.Close() // as a process does that is killed
	_ = s.w.end(s.t.Context(), i, true)
	<-done
	return got
}

// heard is what the caller of an invoke has of it.
type heard struct {
	body    string
	failed  bool
	problem string // the error's JSON, wherever it came
	err     error  // the answer broke off
}

func (s *puppets) hear(id string, header ...string) (h heard) {
	s.t.Helper()
	req, err := http.NewRequest("POST", s.url+"/instances/"+id+"/invoke", strings.NewReader("{}"))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set(invokewire.HeaderToken, "token")
	req.Header.Set(invokewire.HeaderRequestID, "r1")
	for n := 0; n < len(header); n += 2 {
		req.Header.Set(header[n], header[n+1])
	}
	resp := s.send(req)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	h.body, h.err = string(body), err
	if resp.StatusCode != http.StatusOK {
		s.t.Errorf("%s: %s", resp.Status, body)
	}
	if resp.Header.Get(invokewire.HeaderFunctionError) != "" {
		h.failed, h.problem = true, h.body
	}
	if resp.Trailer.Get(invokewire.HeaderFunctionError) != "" {
		text, err := base64.StdEncoding.DecodeString(resp.Trailer.Get(invokewire.HeaderErrorBody))
		if err != nil || !json.Valid(text) {
			s.t.Errorf("a trailer of %q, %v", text, err)
		}
		h.failed, h.problem = true, string(text)
	}
	return h
}

// whole tells whether it is the function's answer, and nothing else.
func (h heard) whole() bool { return h.err == nil && !h.failed && h.body == `{"n":1}` }

// died tells whether it is the error of a function whose process has ended.
func (h heard) died() bool {
	return h.err == nil && h.failed && strings.HasPrefix(h.problem, `{"errorType":"Runtime.ExitError"`)
}

// callers are the ways to ask for an answer.
var callers = map[string][]string{
	"whole": nil, "with the log": {invokewire.HeaderLogType, "Tail"}, "streamed": {invokewire.HeaderStreaming, "1"},
}

func answerFrames(f *invokewire.Frames) {
	_ = f.WriteJSON(invokewire.FrameBegin, invokewire.Begin{RequestID: "r1", ContentType: "application/json"})
	_ = f.Write(invokewire.FrameData, []byte(`{"n"`))
	_ = f.Write(invokewire.FrameData, []byte(`:1}`))
	_ = f.WriteJSON(invokewire.FrameEnd, invokewire.End{})
}

// Wherever an instance's socket breaks off, its caller gets the whole answer or
// the error of a process that ended.
func TestCutInstance(t *testing.T) {
	s, said := newPuppets(t), script(answerFrames)
	for name, header := range callers {
		for cut := range len(said) + 1 {
			got := s.play("i", said[:cut], false, header...)
			if cut == len(said) && !got.whole() || cut < len(said) && !got.died() {
				t.Errorf("%s, cut after %d of %d bytes: %+v", name, cut, len(said), got)
			}
		}
	}
}

// So it is if the function's process ends, whatever of its answer has come.
func TestExitWithinAnswer(t *testing.T) {
	s := newPuppets(t)
	exited := func(f *invokewire.Frames) {
		_ = f.WriteJSON(invokewire.FrameExited, invokewire.Exited{Signal: 9, Status: -1, ErrorType: "Runtime.ExitError"})
	}
	truncated := func(f *invokewire.Frames) {
		_ = f.WriteJSON(invokewire.FrameEnd, invokewire.End{ErrorType: invokewire.ErrorTruncated, ErrorBody: []byte(`{"errorType":"Runtime.TruncatedResponse"}`)})
	}
	begin := func(kind string) func(f *invokewire.Frames) {
		return func(f *invokewire.Frames) {
			_ = f.WriteJSON(invokewire.FrameBegin, invokewire.Begin{RequestID: "r1", ErrorType: kind})
		}
	}
	data := func(f *invokewire.Frames) { _ = f.Write(invokewire.FrameData, []byte(`{"n":1}`)) }
	end := func(f *invokewire.Frames) { _ = f.WriteJSON(invokewire.FrameEnd, invokewire.End{}) }
	late := func(f *invokewire.Frames) {
		_ = f.WriteJSON(invokewire.FrameEnd, invokewire.End{ErrorType: "Runtime.Unknown", ErrorBody: []byte(`{"errorType":"late"}`)})
	}
	done := func(f *invokewire.Frames) { _ = f.WriteJSON(invokewire.FrameDone, invokewire.Done{RequestID: "r1"}) }
	ok, died := heard.whole, heard.died
	says := func(kind string) func(heard) bool {
		return func(h heard) bool { return h.err == nil && h.failed && strings.Contains(h.problem, kind) }
	}
	type steps = []func(*invokewire.Frames)
	for name, c := range map[string]struct {
		steps
		right func(heard) bool
	}{
		"before":                  {steps{exited}, died},
		"after the head":          {steps{begin(""), exited, data, end}, died},
		"before the end":          {steps{begin(""), data, exited, end}, died},
		"after the end":           {steps{begin(""), data, end, exited}, ok},
		"before it is cut":        {steps{begin(""), data, exited, truncated}, died},
		"after it is cut":         {steps{begin(""), truncated, exited}, died},
		"after more is cut":       {steps{begin(""), data, truncated, exited}, died},
		"in the midst of a fault": {steps{begin("Boom"), data, truncated, exited}, died},
		"cut, and it lives":       {steps{begin(""), data, truncated, done}, says("Runtime.TruncatedResponse")},
		"it fails midway":         {steps{begin(""), data, late, done}, says("late")},
		"it fails at once":        {steps{begin(""), late, done}, says("late")},
		"it does not answer":      {steps{done}, says("Runtime.NoResponse")},
		"done before the end":     {steps{begin(""), data, done}, died},
		"an end alone":            {steps{end, done}, died},
		"data alone":              {steps{data, end, done}, died},
		"two heads":               {steps{begin(""), begin(""), data, end, done}, died},
	} {
		for way, header := range callers {
			if got := s.play("i", script(func(f *invokewire.Frames) {
				for _, step := range c.steps {
					step(f)
				}
			}), true, header...); !c.right(got) {
				t.Errorf("%s, %s: %+v", name, way, got)
			}
		}
	}
}

// The answer to another invoke is none of this one's.
func TestAnswerOfAnother(t *testing.T) {
	s := newPuppets(t)
	for way, header := range callers {
		got := s.play("i", script(func(f *invokewire.Frames) {
			_ = f.WriteJSON(invokewire.FrameBegin, invokewire.Begin{RequestID: "r0"})
			_ = f.Write(invokewire.FrameData, []byte(`"of r0"`))
			_ = f.WriteJSON(invokewire.FrameEnd, invokewire.End{})
		}), true, header...)
		if !got.died() {
			t.Errorf("%s: %+v", way, got)
		}
	}
}
