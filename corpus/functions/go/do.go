package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Do is what an event can ask for. Its members are obeyed in the order in which
// they stand here.
type Do struct {
	LogLines int    `json:"log_lines"` // how often; -1: without end
	LogText  string `json:"log_text"`  // once, if LogLines is 0
	SleepMS  int    `json:"sleep_ms"`
	CPUMS    int    `json:"cpu_ms"`  // processor time of one thread
	HashMB   int    `json:"hash_mb"` // a fixed amount of work

	AllocateMB int `json:"allocate_mb"` // touched, and kept for the life of the process
	WriteMB    int `json:"write_mb"`    // to a file of its own in /tmp, which stays; -1: without end
	Forks      int `json:"forks"`       // children that only sleep; -1: without end, also when no more can be had

	Env     []string `json:"env"`     // variables to tell
	Files   []string `json:"files"`   // files to tell, 64 KiB of each at most
	Resolve []string `json:"resolve"` // names to look up
	Dial    []string `json:"dial"`    // host:port to connect to, a second each
	Get     []string `json:"get"`     // URLs to read, 64 KiB and five seconds each at most
	// Calls are requests to the Runtime API, "METHOD PATH" or "METHOD PATH BODY",
	// for whoever wants to call it out of order.
	Calls []string `json:"calls"`
	// Connections are opened and kept: to host:port, or to the Runtime API.
	Connections int    `json:"connections"`
	ConnectTo   string `json:"connect_to"`
	HoldMS      int    `json:"hold_ms"` // sleep, after all that stands above

	Error string `json:"error"` // fail with this text
	Panic string `json:"panic"`
	Exit  *int   `json:"exit"` // end the process with this status

	Stream      *Stream `json:"stream"`       // answer piece by piece
	AnswerBytes int     `json:"answer_bytes"` // answer with a JSON string of this length, quotes included
}

// Found is what was found on the way. What could not be had is told as "error: …".
type Found struct {
	Env     map[string]string `json:"env,omitempty"` // those that are set
	Files   map[string]string `json:"files,omitempty"`
	Resolve map[string]string `json:"resolve,omitempty"`
	Dial    map[string]string `json:"dial,omitempty"` // "ok"
	Get     map[string]string `json:"get,omitempty"`  // status and body
	Calls   map[string]string `json:"calls,omitempty"`
	Hash    string            `json:"hash,omitempty"`
	Wrote   string            `json:"wrote,omitempty"` // to /tmp
	Forked  string            `json:"forked,omitempty"`
}

const (
	dialTimeout = time.Second
	getTimeout  = 5 * time.Second
	maxRead     = 64 << 10
	mib         = 1 << 20
)

// keeper is a connection that is kept open.
type keeper interface{ io.Closer }

func (f *function) do(ctx context.Context, d *Do) (Found, error) {
	var found Found
	flood(os.Stdout, d.LogLines, d.LogText)
	time.Sleep(milliseconds(d.SleepMS))
	compute(milliseconds(d.CPUMS))
	found.Hash = hashMB(d.HashMB)
	f.allocate(d.AllocateMB)
	if d.WriteMB != 0 {
		found.Wrote = write(os.TempDir(), d.WriteMB)
	}
	if d.Forks != 0 {
		found.Forked = fork(d.Forks)
	}
	found.Env = variables(d.Env)
	found.Files = each(d.Files, readFile)
	found.Resolve = each(d.Resolve, func(name string) (string, error) {
		addresses, err := net.DefaultResolver.LookupHost(ctx, name)
		return strings.Join(addresses, " "), err
	})
	found.Dial = each(d.Dial, dial)
	found.Get = each(d.Get, func(url string) (string, error) { return request(ctx, http.MethodGet+" "+url) })
	api := os.Getenv("AWS_LAMBDA_RUNTIME_API")
	found.Calls = each(d.Calls, func(call string) (string, error) {
		return request(ctx, strings.Replace(call, " ", " http://"+api, 1))
	})
	if err := f.connect(cmp.Or(d.ConnectTo, api), d.Connections); err != nil {
		return found, err
	}
	time.Sleep(milliseconds(d.HoldMS))
	return found, end(d)
}

// end ends the invoke, or the process, as asked.
func end(d *Do) error {
	if d.Error != "" {
		return errors.New(d.Error)
	}
	if d.Panic != "" {
		panic(d.Panic)
	}
	if d.Exit != nil {
		os.Exit(*d.Exit)
	}
	return nil
}

// each asks about every name.
func each(names []string, ask func(string) (string, error)) map[string]string {
	found := map[string]string{}
	for _, name := range names {
		text, err := ask(name)
		if err != nil {
			text = "error: " + err.Error()
		}
		found[name] = text
	}
	return found
}

func variables(names []string) map[string]string {
	found := map[string]string{}
	for _, name := range names {
		if v, ok := os.LookupEnv(name); ok {
			found[name] = v
		}
	}
	return found
}

// flood writes lines, n times or without end. They are numbered, so that a
// reader sees what is missing.
func flood(to io.Writer, n int, text string) {
	if n == 0 {
		if text != "" {
			fmt.Fprintln(to, text)
		}
		return
	}
	w := bufio.NewWriter(to)
	defer w.Flush()
	for i := 0; i != n; i++ {
		if _, err := fmt.Fprintf(w, "line %d %s\n", i, text); err != nil {
			return
		}
	}
}

// compute keeps one thread busy until it has had d of processor time.
func compute(d time.Duration) {
	if d <= 0 {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for begin := threadTime(); threadTime()-begin < d; {
		sha256.Sum256(make([]byte, 64<<10))
	}
}

// threadTime is the processor time that this thread has had.
func threadTime() time.Duration {
	const thread = 1 // RUSAGE_THREAD
	var u syscall.Rusage
	_ = syscall.Getrusage(thread, &u) // fails for wrong arguments only
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func hashMB(n int) string {
	if n <= 0 {
		return ""
	}
	h, block := sha256.New(), make([]byte, mib)
	for range n {
		h.Write(block)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// allocate takes memory and touches every page of it.
func (f *function) allocate(n int) {
	for range n {
		b := make([]byte, mib)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		f.held = append(f.held, b)
	}
}

// write fills a new file in dir, and tells how far it came. A file that could
// not be written whole is cut to nothing, so that there is room again.
func write(dir string, n int) string {
	file, err := os.CreateTemp(dir, "function-")
	if err != nil {
		return "error: " + err.Error()
	}
	defer file.Close()
	block := make([]byte, mib)
	for i := range block {
		block[i] = byte(i)
	}
	for i := 0; i != n; i++ {
		if _, err = file.Write(block); err == nil {
			continue
		}
		_ = file.Truncate(0) // best effort
		return fmt.Sprintf("error: after %d MiB: %v", i, err)
	}
	return fmt.Sprintf("%d MiB", n)
}

// fork starts n children and leaves them. Without end it goes on when it cannot.
func fork(n int) string {
	for i := 0; i != n; i++ {
		c := exec.Command("/proc/self/exe")
		c.Env = []string{childVariable + "=1"}
		if err := c.Start(); err != nil && n > 0 {
			return fmt.Sprintf("error: after %d: %v", i, err)
		}
	}
	return fmt.Sprint(n)
}

func readFile(name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxRead))
	return string(b), err
}

func dial(address string) (string, error) {
	c, err := net.DialTimeout("tcp", address, dialTimeout)
	if err != nil {
		return "", err
	}
	return "ok", c.Close()
}

// connect opens connections and keeps them.
func (f *function) connect(address string, n int) error {
	for range n {
		c, err := net.DialTimeout("tcp", address, dialTimeout)
		if err != nil {
			return fmt.Errorf("after %d connections: %w", len(f.kept), err)
		}
		f.kept = append(f.kept, c)
	}
	return nil
}

// request does "METHOD URL" or "METHOD URL BODY" and gives status and body.
func request(ctx context.Context, line string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	method, rest, _ := strings.Cut(line, " ")
	url, body, _ := strings.Cut(rest, " ")
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxRead))
	return fmt.Sprintf("%d %s", resp.StatusCode, b), err
}
