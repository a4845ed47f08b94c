package frontend

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"

	"thaw/functions"
	"thaw/invokewire"
)

// lines is a log that tests read.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), what)
}

// second adds a worker, and waits until starts may come to it.
func (d *door) second() *fakeWorker {
	d.t.Helper()
	w := newFakeWorker(d.t, d.leases, "w1")
	d.until("it is known", func() bool { return len(d.workers.addresses()) == 2 })
	at := w.looks.Load()
	d.until("its state is known", func() bool { return w.looks.Load() >= at+2 }) // one at a time: the first was heard
	return w
}

// What one worker fails to start starts on the other, each time, and no invoke
// runs twice; where there is no other, the worker's error is the client's, at once.
func TestStartElsewhere(t *testing.T) {
	d := newDoor(t)
	log := &lines{}
	d.Frontend.options.Log = slog.New(slog.NewTextHandler(log, nil))
	d.worker.broken.Store(http.StatusInternalServerError)
	two := 2
	names := []string{"f", "g", "h"}
	for _, name := range names {
		d.function(name, func(f *functions.Function) { f.Reserved = &two })
	}
	alone := func(want int) {
		t.Helper()
		before, _, _ := d.worker.counts()
		_, err := d.invoke(&lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte("1")})
		refused(t, err, "ServiceException", "")
		if starts, _, _ := d.worker.counts(); starts-before != want {
			t.Errorf("%d starts, want %d", starts-before, want)
		}
	}
	alone(1)
	good := d.second()
	for _, name := range names { // the first try is on either
		for n := range 20 {
			d.ok(name, fmt.Sprint(n))
		}
	}
	var work sync.WaitGroup
	for range 2 { // as many as are reserved: what has failed does not count
		work.Go(func() {
			if _, err := d.invoke(&lambda.InvokeInput{FunctionName: aws.String("h"), Payload: []byte("1")}); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	if starts, invokes, _ := good.counts(); starts < 3 || invokes != 62 {
		t.Errorf("%d starts, %d invokes on the good worker", starts, invokes)
	}
	if _, invokes, _ := d.worker.counts(); invokes != 0 {
		t.Errorf("%d invokes on the bad worker", invokes)
	}
	if log.count("starts fail on a worker") == 0 || log.count("worker=w0") == 0 || log.count("worker=w1") != 0 || log.count("no key") == 0 {
		t.Errorf("the operator is told: %s", log.b.String())
	}
}

// startsFail has one invoke, which is refused with a code, where each start on two
// workers fails with a status: how many were asked for on each, and what the
// operator is told.
func startsFail(t *testing.T, status int32, code string) (a, b int, log *lines, d *door) {
	t.Helper()
	d, log = newDoor(t), &lines{}
	d.Frontend.options.Log = slog.New(slog.NewTextHandler(log, nil))
	other := d.second()
	d.worker.broken.Store(status)
	other.broken.Store(status)
	d.function("f")
	_, err := d.invoke(&lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte("1")})
	refused(t, err, code, "")
	a, _, _ = d.worker.counts()
	b, _, _ = other.counts()
	return a, b, log, d
}

// Both fail: the client gets an error of a worker's, after each was asked once.
func TestStartNowhere(t *testing.T) {
	a, b, _, d := startsFail(t, http.StatusInternalServerError, "ServiceException")
	if a != 1 || b != 1 {
		t.Errorf("%d and %d starts, want one each", a, b)
	}
	d.until("nothing is held", func() bool { return d.pool.count(true)+d.pool.count(false) == 0 })
}

// A function that ends its sandbox, or whose image is gone, is no worker's fault,
// and is tried once: the manager is told of neither.
func TestStartFailsEverywhere(t *testing.T) {
	for status, code := range map[int32]string{http.StatusUnprocessableEntity: "ServiceException", http.StatusBadGateway: "ResourceNotReadyException"} {
		a, b, log, _ := startsFail(t, status, code)
		if a+b != 1 || log.count("starts fail on a worker") != 0 {
			t.Errorf("%s: %d and %d starts, want one; %s", code, a, b, log.b.String())
		}
	}
}

// A start that has failed when nobody needs it any more is not tried elsewhere,
// and is nobody's error.
func TestStartFailsUnneeded(t *testing.T) {
	d := newDoor(t)
	answer := d.behind()
	other := d.second()
	d.worker.letGo()
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	d.worker.starts <- http.StatusInternalServerError
	d.until("it is over", func() bool {
		d.pool.mu.Lock()
		defer d.pool.mu.Unlock()
		for _, of := range d.pool.lines {
			if len(of.starts) > 0 {
				return false
			}
		}
		return true
	})
	if starts, _, _ := other.counts(); starts != 0 {
		t.Errorf("%d starts elsewhere", starts)
	}
}

// A worker is told of once a minute, and not at all once it has left.
func TestBlame(t *testing.T) {
	w := newWorkers(http.DefaultClient, testToken)
	now := time.Now()
	at := func(d time.Duration, address string) string { return w.blame(address, now.Add(d)) }
	w.known["w0"] = "a:1"
	if at(0, "b:1") != "" || at(0, "a:1") != "w0" || at(blameTime-1, "a:1") != "" || at(blameTime, "a:1") != "w0" {
		t.Error("not once a minute")
	}
	if w.others([]invokewire.Lease{{Worker: "a:1"}}) || !w.others([]invokewire.Lease{{Worker: "b:1"}}) {
		t.Error("there is one worker")
	}
}
