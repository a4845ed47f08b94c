package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"thaw/host"
)

// sealing gives a take that leaves a trace as the agent does, and counts its
// calls.
func sealing(calls *int) func(*os.File) error {
	return func(file *os.File) error {
		*calls++
		_, err := file.WriteString("sealed")
		return err
	}
}

// keeping is an order whose command copies the trace to a file, and says that.
func keeping(t *testing.T, ready, script string) (*host.Order, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "trace")
	return &host.Order{Ready: ready, KeepTrace: []string{"sh", "-c", script, "sh", file}}, file
}

func TestRecording(t *testing.T) {
	const keeps = `cat >"$1"`
	for name, c := range map[string]struct {
		ready, script string
		run           func(r *recording)
		kept          bool
		says          string
	}{
		"to the end":           {"", keeps, func(r *recording) { r.exited(true) }, true, ""},
		"to a text":            {"up", keeps, func(r *recording) { r.ready(); r.exited(true) }, true, ""},
		"to a text, twice":     {"up", keeps, func(r *recording) { r.ready(); r.ready(); r.exited(true) }, true, ""},
		"to a time":            {"", keeps, func(r *recording) { r.late.Reset(0); <-r.kept; r.kept <- nil; r.exited(true) }, true, ""},
		"a text never printed": {"up", keeps, func(r *recording) { r.exited(true) }, false, `the program has not printed "up" before its end`},
		"a text in no time":    {"up", keeps, func(r *recording) { r.never("in 1s"); r.ready(); r.exited(true) }, false, `has not printed "up" in 1s`},
		"of no start":          {"", keeps, func(r *recording) { r.exited(false) }, false, ""},
		"of no end":            {"", keeps, func(*recording) {}, false, ""},
		"that fails": {"", `echo "thaw: the origin
is down" >&2; exit 1`, func(r *recording) { r.exited(true) }, false, "recorded: the origin; is down\n"},
		"that fails silently": {"", "exit 1", func(r *recording) { r.exited(true) }, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			order, file := keeping(t, c.ready, c.script)
			calls := 0
			r := newRecording(order, sealing(&calls))
			said := told(t, func() { c.run(r); r.wait() })
			got, err := os.ReadFile(file)
			if c.kept && (string(got) != "sealed" || calls != 1) || !c.kept && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("kept %q, %v, after %d calls", got, err, calls)
			}
			if c.says == "" && said != "" || !strings.Contains(said, c.says) || c.says != "" && strings.Count(said, "\n") != 1 {
				t.Errorf("said %q, want %q", said, c.says)
			}
		})
	}
}

// What goes wrong on the way is told, and nothing else.
func TestRecordingFails(t *testing.T) {
	order, _ := keeping(t, "", "true")
	for name, c := range map[string]struct {
		by   []string
		take func(*os.File) error
	}{
		"no agent":   {order.KeepTrace, func(*os.File) error { return io.ErrUnexpectedEOF }},
		"no command": {[]string{"/no/such/thaw"}, func(*os.File) error { return nil }},
	} {
		r := newRecording(&host.Order{KeepTrace: c.by}, c.take)
		if said := told(t, func() { r.exited(true); r.wait() }); !strings.HasPrefix(said, "thaw: this start is not recorded: ") || strings.Count(said, "\n") != 1 {
			t.Errorf("%s: said %q", name, said)
		}
	}
}

// Who keeps the trace may hang: the end of the instance does not.
func TestSaid(t *testing.T) {
	for text, want := range map[string]string{"": "<nil>", "thaw: no space\n": "no space", "panic: x\n\ny": "panic: x\n\ny", strings.Repeat("x", 2*maxWarning): strings.Repeat("x", maxWarning)} {
		r, w := mustPipe(t)
		if _, err := w.WriteString(text); err != nil {
			t.Fatal(err)
		}
		w.Close()
		if err := said(r); fmt.Sprint(err) != want {
			t.Errorf("%.40q: %.40v, want %.40q", text, err, want)
		}
	}
	r, _ := mustPipe(t)
	if err := r.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := said(r); err == nil || err.Error() != "it could not be kept in time" {
		t.Error(err)
	}
}

func mustPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func TestNoRecording(t *testing.T) {
	r := newRecording(&host.Order{Ready: "up"}, nil)
	if said := told(t, func() { r.exited(true); r.wait() }); r != nil || said != "" {
		t.Errorf("%v, %q", r, said)
	}
}
