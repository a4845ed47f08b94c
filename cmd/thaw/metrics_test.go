package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"thaw/internal/testpty"
)

// scrape gives the sums of the numbers at an address.
func scrape(t *testing.T, address string) map[string]float64 {
	t.Helper()
	return sums(scraped(t, address))
}

// sums gives each number as the sum of its series.
func sums(families map[string]*dto.MetricFamily) map[string]float64 {
	values := map[string]float64{}
	for name, f := range families {
		for _, m := range f.GetMetric() {
			values[name] += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return values
}

// scraped gives all that is at an address, and wants no fault of it.
func scraped(t *testing.T, address string) map[string]*dto.MetricFamily {
	t.Helper()
	client := http.Client{Timeout: patience}
	get := func() *http.Response {
		res, err := client.Get("http://" + address + "/metrics")
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%v, %v", res, err)
		}
		return res
	}
	res := get()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(res.Body)
	_ = res.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range families {
		if f.GetType() == dto.MetricType_UNTYPED || f.GetHelp() == "" {
			t.Errorf("%s: %v", name, f)
		}
	}
	res = get()
	problems, err := promlint.New(res.Body).Lint()
	_ = res.Body.Close()
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	return families
}

// scrapeOf gives numbers in which so many agents and fetchers have answered, and
// each is what is wanted at least. On a busy machine one that is fine may be late,
// and what was read is counted as kept a moment later.
func scrapeOf(t *testing.T, address string, agents, fetchers float64, least map[string]float64) map[string]float64 {
	t.Helper()
	for late := time.Now().Add(patience); ; {
		v := scrape(t, address)
		enough := v["thaw_agent_up"] == agents && v["thaw_fetcher_up"] == fetchers
		for name, n := range least {
			enough = enough && v[name] >= n
		}
		if enough {
			return v
		}
		if time.Now().After(late) {
			t.Fatalf("want %v agents and %v fetchers, and at least %v: %v", agents, fetchers, least, v)
		}
	}
}

// An exporter tells of what runs now, leaves out who hangs and says so, and has
// the rest in time.
func TestMetrics(t *testing.T) {
	m := newMachine(t)
	m.convert("app", 1)
	e := m.start("metrics", "--listen", "127.0.0.1:0")
	address := e.line()
	if v := scrape(t, address); v["thaw_images_mounted"] != 0 || v["thaw_agent_up"] != 0 {
		t.Errorf("of nothing: %v", v)
	}
	app := m.serve("app")
	defer app.in.Close() // it heeds no signal
	app.reads(1, 2)
	before := scrapeOf(t, address, 1, 1, map[string]float64{
		"thaw_agent_chunks_total": 2, "thaw_fetcher_bytes_total": dataBytes, "thaw_agent_get_seconds": 2, "thaw_fetcher_stage_seconds": 2, "thaw_cache_used_bytes": dataBytes,
	})
	if before["thaw_images_mounted"] != 1 || before["thaw_instances"] != 1 {
		t.Errorf("%v", before)
	}
	app.reads(1, 3)
	after := scrapeOf(t, address, 1, 1, map[string]float64{"thaw_agent_chunks_total": before["thaw_agent_chunks_total"] + 1})
	for name, v := range before {
		if strings.HasSuffix(name, "_total") && after[name] < v {
			t.Errorf("%s went from %v to %v", name, v, after[name])
		}
	}
	fetcher := m.fetcher()
	stop(t, fetcher)
	hung := scrapeOf(t, address, 1, 0, nil)
	if err := syscall.Kill(fetcher, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, there := hung["thaw_fetcher_chunks_total"]; there || hung["thaw_unanswered_total"] <= after["thaw_unanswered_total"] || hung["thaw_agent_chunks_total"] < after["thaw_agent_chunks_total"] {
		t.Errorf("with a fetcher that hangs: %v", hung)
	}
	if v := scrapeOf(t, address, 1, 1, nil); v["thaw_unanswered_total"] <= hung["thaw_unanswered_total"] { // both halves of a scrape
		t.Errorf("after it hung: %v", v)
	}
	if e := app.end(); e.code != 0 {
		t.Errorf("%+v", e)
	}
	if v := scrape(t, address); v["thaw_images_mounted"]+v["thaw_agent_up"]+v["thaw_fetcher_up"]+v["thaw_instances"] != 0 {
		t.Errorf("after the end: %v", v)
	}
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if end := e.wait(); end.code != 0 || end.stderr != "" {
		t.Errorf("%+v", end)
	}
}

// On a terminal thaw top is live, and stays so when it is stopped and goes on;
// Ctrl-C leaves the terminal as it was. So does a program that runs on it.
func TestTop(t *testing.T) {
	m := newMachine(t)
	m.convert("app", 1)
	app := m.serve("app")
	defer app.in.Close() // it heeds no signal
	p := testpty.Open(t, 40, 120)
	cmd := m.command("top", "--interval", "100ms")
	cmd.Env = append(cmd.Env, "TERM=xterm")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.TTY, p.TTY, p.TTY
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	defer func() {
		if !ended { // or the terminal could not be closed
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}()
	p.Await("  since the start of each") // an agent that is busy may be late for this one
	p.Await("images 1, instances 1  in ")
	p.Await(" s  (q quits)")
	p.Await("app  ")
	app.reads(1, 5)
	p.Resize(12, 40) // the kernel tells the job
	p.Await("images 1, instances 1  i\x1b[K")
	const leaves, enters = "\x1b[?1049l", "\x1b[?1049h"
	if err := cmd.Process.Signal(syscall.SIGTSTP); err != nil { // what Ctrl-Z does, where there is a shell
		t.Fatal(err)
	}
	p.Await(leaves)
	awaitStopped(t, cmd)
	p.Restored()
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.Await(enters)
	p.Await("TIER")
	p.Type("\x03")
	p.Await(leaves)
	ended = true
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	p.Restored()
	onTerminal(t, m, p)
	if e := app.end(); e.code != 0 {
		t.Errorf("%+v", e)
	}
}

// onTerminal: run -it gives the program a terminal like the caller's, with its
// size, what is typed and its keys, and leaves the caller's as it was.
func onTerminal(t *testing.T, m *machine, p *testpty.Terminal) {
	p.Resize(31, 101)
	cmd := m.command("run", "-it", "app", "/bin/inside", "serve")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.TTY, p.TTY, p.TTY
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	p.Await("ready\r\n")
	ask := func(line string) string {
		p.Type(line + "\n")
		p.Await(line + "\r\n") // the inner terminal's echo
		return p.Await("\r\n")
	}
	if got := ask("echo hello"); got != "hello" {
		t.Errorf("inside answers %q", got)
	}
	sized := func(want string) {
		for end := time.Now().Add(patience); ask("size") != want; {
			if time.Now().After(end) {
				t.Fatalf("the terminal inside never had %s", want)
			}
		}
	}
	sized("31x101")
	p.Resize(12, 40)
	sized("12x40")
	p.Type("\x03")
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 2 { // of a Go program that is process 1
		t.Errorf("Ctrl-C ends it with status %d", code)
	}
	p.Restored()
}

// awaitStopped waits until a child is.
func awaitStopped(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); ; {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(stat), ") T ") {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not stopped: %s", stat)
		}
	}
}
