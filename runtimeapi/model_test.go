package runtimeapi

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"thaw/runtimeapi/http1"
)

// model is what an API should do, told naively: one variable for each thing.
type model struct {
	runtime      string
	nexts        int // calls of next that wait
	invoke       int // number of the invoke under way; 0: none
	handed       bool
	invokes      int
	closed, over bool
	ext          [2]modelExtension // the external one, and an internal one
}

type modelExtension struct {
	state         string
	waits, busy   bool
	invoke, shut  bool // an event is kept for it
	wantsShutdown bool
}

// calls of the fuzzer, and of whom they are.
var modelCalls = []string{"next", "response", "stale", "error", "init/error", "restore/next", "restore/error", "register", "event/next", "ext init/error", "exit/error",
	"invoke", "shutdown"}

// result is what a call should give: its status (0: it waits), who else is answered, and what
// the sink is told.
type result struct {
	status int
	freed  []string // "next", "event0", "event1"
	told   string
}

func (m *model) deliver(r *result) {
	if m.runtime == "Ready" && m.invoke > 0 && !m.handed && m.nexts > 0 {
		m.nexts--
		m.handed, m.runtime = true, "Running"
		r.freed = append(r.freed, "next")
	}
}

// settle says what is over.
func (m *model) settle(r *result) {
	idle := m.runtime == "Ready"
	for _, e := range m.ext {
		idle = idle && (e.state == "" || e.state == "Ready")
	}
	if !m.over && idle {
		m.over = true
		r.told = "init-done"
	} else if m.over && m.invoke > 0 && m.handed && m.runtime == "Ready" && !m.ext[0].busy && !m.ext[1].busy {
		r.told = fmt.Sprintf("done:r%d", m.invoke)
		m.invoke, m.handed = 0, false
	}
}

func (m *model) failInit(kind string, r *result) {
	if !m.over {
		m.over = true
		r.told = "init-failed:" + kind + ":"
	}
}

func (m *model) call(name string, who int) (r result) {
	r.status = 403
	e := &m.ext[who]
	switch name {
	case "next":
		switch m.runtime {
		case "Running":
			r.status = 200
		case "Started", "Restoring", "Sent", "Ready":
			m.runtime, m.closed = "Ready", true
			m.nexts++
			r.status = 0
			m.deliver(&r)
			m.settle(&r)
		}
	case "stale":
		r.status = 400
	case "response", "error":
		if m.invoke == 0 || !m.handed {
			r.status = 400
		} else if m.runtime == "Running" {
			m.runtime, r.status = "Sent", 202
			kind := map[string]string{"response": "", "error": "Runtime.Unknown"}[name]
			r.told = fmt.Sprintf("begin:r%d::false:%s end::", m.invoke, kind)
		}
	case "init/error", "restore/error":
		if m.runtime == "Started" && name == "init/error" || m.runtime == "Restoring" {
			m.runtime, r.status = "Failed", 202
			m.failInit("Runtime.Unknown", &r)
		}
	case "restore/next":
		if m.runtime == "Started" {
			m.runtime, m.closed, r.status = "Restoring", true, 200
		}
	case "register":
		if who == 0 && e.state == "Started" || who == 1 && e.state == "" && !m.closed {
			e.state, r.status, e.wantsShutdown = "Registered", 200, who == 0
		}
	case "event/next":
		m.eventNext(e, &r)
	case "ext init/error", "exit/error":
		to := map[string]string{"ext init/error": "InitError", "exit/error": "ExitError"}[name]
		if e.state == to || e.state == "Registered" || to == "ExitError" && (e.state == "Ready" || e.state == "Running") {
			e.state, r.status = to, 202
			m.failInit("Extension."+to, &r)
		}
	case "invoke":
		r.status = 0
		if m.over && m.invoke == 0 && m.runtime == "Ready" {
			m.invokes++
			m.invoke, r.status = m.invokes, 1
			for i := range m.ext {
				if m.ext[i].state == "Ready" {
					m.ext[i].busy = true
					m.send(i, &r, &m.ext[i].invoke)
				}
			}
			m.deliver(&r)
		}
	case "shutdown":
		r.status = 0
		if m.ext[0].wantsShutdown && slices.Contains([]string{"Registered", "Ready", "Running"}, m.ext[0].state) {
			r.status = 1
			m.ext[0].invoke = false
			m.send(0, &r, &m.ext[0].shut)
		}
	}
	return r
}

func (m *model) eventNext(e *modelExtension, r *result) {
	if e.state != "Registered" && e.state != "Running" {
		return
	}
	if e.state == "Running" {
		e.busy = false
	}
	e.state, r.status, e.waits = "Ready", 0, true
	if e.invoke || e.shut {
		e.invoke, e.shut, e.waits = false, false, false
		e.state, r.status = "Running", 200
	}
	// The API looks at what is over after it has given an event out.
	m.settle(r)
}

func (m *model) send(i int, r *result, kept *bool) {
	if !m.ext[i].waits {
		*kept = true
		return
	}
	m.ext[i].waits, m.ext[i].state = false, "Running"
	r.freed = append(r.freed, fmt.Sprint("event", i))
}

// driver does to an API what the model is told.
type driver struct {
	*bench
	m       model
	ids     [2]string
	waiting []waiting
}

type waiting struct {
	name string
	c    <-chan http1.Answer
}

func (d *driver) call(name string, who int) <-chan http1.Answer {
	wire := map[string][2]string{
		"next": {"GET", apiRoot + "invocation/next"}, "stale": {"POST", apiRoot + "invocation/r0/response"},
		"response": {"POST", fmt.Sprintf("%sinvocation/r%d/response", apiRoot, d.m.invoke)}, "error": {"POST", fmt.Sprintf("%sinvocation/r%d/error", apiRoot, d.m.invoke)},
		"init/error": {"POST", apiRoot + "init/error"}, "restore/next": {"GET", apiRoot + "restore/next"}, "restore/error": {"POST", apiRoot + "restore/error"},
		"event/next": {"GET", extensionRoot + "event/next"}, "ext init/error": {"POST", extensionRoot + "init/error"}, "exit/error": {"POST", extensionRoot + "exit/error"},
	}[name]
	return d.begin(wire[0], wire[1], identifierHeader, d.ids[who], extensionErrorHeader, "x")
}

// step makes one call and checks all that it brings about.
func (d *driver) step(t *testing.T, name string, who int) {
	invokes := d.m.invokes
	var c <-chan http1.Answer
	status := 0
	switch name {
	case "invoke":
		if d.Invoke(Invoke{RequestID: fmt.Sprint("r", invokes+1)}) == nil {
			status = 1
		}
	case "shutdown":
		status = len(d.Shutdown("spindown", 0))
	case "register":
		body := `{"events":["INVOKE"` + map[int]string{0: `,"SHUTDOWN"`}[who] + `]}`
		a := d.bench.call("POST", extensionRoot+"register", body, "Lambda-Extension-Name", fmt.Sprint("e", who))
		if status = a.Status; status == 200 {
			d.ids[who] = field(a, identifierHeader)
		}
	default:
		c = d.call(name, who)
	}
	want := d.m.call(name, who)
	synctest.Wait()
	if c != nil {
		d.waiting = append(d.waiting, waiting{map[string]string{"event/next": fmt.Sprint("event", who)}[name], c})
		if name == "next" {
			d.waiting[len(d.waiting)-1].name = "next"
		}
		if want.status == 0 {
			status = d.answered(t, want.freed)
		} else if status = d.answered(t, append(want.freed, d.waiting[len(d.waiting)-1].name)); status == 0 {
			status = want.status
		}
	} else {
		status = max(status, d.answered(t, want.freed))
	}
	if status != want.status {
		t.Fatalf("%s of %d gives %d, want %d", name, who, status, want.status)
	}
	d.told(t, want.told)
}

// answered takes the calls that have been answered, which should be these, and
// gives the status of one that was refused.
func (d *driver) answered(t *testing.T, want []string) (refused int) {
	var got []string
	d.waiting = slices.DeleteFunc(d.waiting, func(w waiting) bool {
		select {
		case a := <-w.c:
			got = append(got, w.name)
			if a.Status != 200 || w.name == "" {
				refused = a.Status
			}
			return true
		default:
			return false
		}
	})
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("answered: %q, want %q", got, want)
	}
	return refused
}

// Whatever order calls come in, the API does what the model says.
func FuzzOrder(f *testing.F) {
	op := func(names ...string) (ops []byte) {
		for _, n := range names {
			who := 0
			if n[0] == '1' {
				who, n = 1, n[1:]
			}
			ops = append(ops, byte(slices.Index(modelCalls, n)<<1|who))
		}
		return ops
	}
	f.Add(false, op("next", "invoke", "response", "next", "invoke", "error", "next", "next"))
	f.Add(false, op("next", "invoke", "next", "response", "response", "next", "stale", "invoke"))
	f.Add(true, op("register", "1register", "event/next", "1event/next", "next", "invoke", "response", "event/next", "next", "1event/next", "shutdown"))
	f.Add(true, op("register", "next", "event/next", "invoke", "shutdown", "event/next", "exit/error", "response", "next"))
	f.Add(false, op("restore/next", "init/error", "next", "restore/error"))
	f.Add(true, op("register", "ext init/error", "ext init/error", "exit/error", "next", "init/error", "1register"))
	f.Add(false, op("init/error", "next", "response", "init/error", "1register", "1event/next", "1event/next"))
	f.Fuzz(func(t *testing.T, external bool, ops []byte) {
		if len(ops) > 64 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			o := Options{}
			d := &driver{m: model{runtime: "Started"}, ids: [2]string{newID(), newID()}}
			if external {
				o.External = []string{"e0"}
				d.m.ext[0].state = "Started"
			}
			d.bench = newBench(t, o)
			for _, b := range ops {
				name, who := modelCalls[int(b>>1)%len(modelCalls)], int(b&1)
				if who == 0 && !external {
					who = 1 // e0 would be internal
				}
				t.Log(name, who)
				d.step(t, name, who)
			}
			d.Close()
		})
	})
}
