//go:build cloud

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	logtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"golang.org/x/sys/unix"

	"thaw/cache"
	"thaw/host"
	"thaw/invokewire"
	"thaw/worker"
)

const (
	// benchLook is how often the bench looks whether something has come.
	benchLook = 100 * time.Millisecond
	// emptyPatience is how long a worker may take to end all that it had prepared.
	emptyPatience = time.Minute
	// answerPatience is how long fetchers and agents may take to give their numbers.
	answerPatience = time.Minute
	// startPatience is how long events may take beyond what each holds: the queue
	// of a thousand starts on a small machine.
	startPatience = 5 * time.Minute
	// benchTimeout is the function's beyond the hold: a slow init is no failure.
	benchTimeout = 60 * time.Second
	// dropCaches has the kernel drop its page cache, and what it knows of files.
	dropCaches = "/proc/sys/vm/drop_caches"
)

// memoryOf is a row's, in MB.
func (b *coldBench) memoryOf(row string) int {
	if row != rowLargeMemory {
		return b.Memory
	}
	return max(b.Memory, min(b.LargeMemory, int(b.memory>>20)/b.Parallel))
}

// measure deploys a row's function and starts it, each round from nothing.
func (b *coldBench) measure(ctx context.Context, name string) (*coldRow, error) {
	row := &coldRow{Name: name, MemoryMB: b.memoryOf(name), Starts: map[string]int{}, Stages: map[string]float64{}, stages: map[string][]float64{}}
	row.Source = map[string]string{rowSmall: b.Small, rowLarge: b.Large, rowLargeMemory: b.Large, rowZip: b.Zip}[name]
	d := &deployCmd{
		Name: "bench-" + name + "-" + b.run, Source: row.Source, Memory: aws.Int32(int32(row.MemoryMB)), Timeout: aws.Int32(int32(math.Ceil((b.Hold + benchTimeout).Seconds()))), Command: b.Command,
	}
	if name == rowZip {
		d.Runtime, d.Handler, d.Command = b.Runtime, "bootstrap", nil
	}
	code, err := d.code()
	if err == nil {
		err = d.create(ctx, b.platform, code)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		_, _ = b.functions.DeleteFunction(context.WithoutCancel(ctx), &lambda.DeleteFunctionInput{FunctionName: &d.Name}) // thaw functions shows it
	}()
	if _, err := d.wait(ctx, b.platform, b.Globals); err != nil {
		return nil, err
	}
	for range b.Rounds {
		if err := b.round(ctx, row, d.Name); err != nil {
			return nil, err
		}
	}
	row.summarize()
	return row, nil
}

// round is one measurement.
func (b *coldBench) round(ctx context.Context, row *coldRow, function string) error {
	prepare := b.prepareFull
	if b.Start == invokewire.StartPartial {
		prepare = b.preparePartial
	}
	if err := prepare(ctx, row, function); err != nil {
		return err
	}
	before, err := b.fetched(ctx)
	if err != nil {
		return err
	}
	began, busy := time.Now(), busyTime()
	sent := b.send(ctx, function, b.Parallel)
	samples, err := b.reports(ctx, function, began, sent)
	if err != nil {
		return err
	}
	row.busy += busyTime() - busy
	row.take(samples, len(sent))
	after, err := b.fetched(ctx)
	if err != nil {
		return err
	}
	row.Fetched.Zone.add(after.Zone.Chunks-before.Zone.Chunks, after.Zone.Bytes-before.Zone.Bytes)
	row.Fetched.Origin.add(after.Origin.Chunks-before.Origin.Chunks, after.Origin.Bytes-before.Origin.Bytes)
	if b.Start == invokewire.StartFull { // else what agents have read is of other starts too
		if err := b.touched(ctx, row); err != nil {
			return err
		}
	}
	return b.stagesSince(ctx, row, function, began)
}

// prepareFull brings about that nothing of any start is on this machine, and
// fails if something is.
func (b *coldBench) prepareFull(ctx context.Context, row *coldRow, _ string) error {
	numbers, err := b.host.Ask(ctx)
	if err != nil {
		return err
	}
	if len(numbers.Fetchers) != 1 {
		return fmt.Errorf("%d fetchers run with this --state, want the worker's alone: end what thaw run and mount have started", len(numbers.Fetchers))
	}
	if err := b.empty(ctx, ""); err != nil {
		return err
	}
	folder, err := cache.OpenFolder(numbers.Fetchers[0].Cache, int64(b.CacheSize))
	if err != nil {
		return err
	}
	if lists, err := folder.Pins(); err != nil || len(lists) > 0 && !b.Pinned {
		return errors.Join(err, errors.New("base images stay in the cache, and would be fetched again: remove them (thaw base rm), or measure with --pinned"))
	}
	if err := b.emptyCache(ctx, folder, row); err != nil {
		return err
	}
	left, err := b.host.Attached()
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("something is there before the start: %s, and %d more", left[0], len(left)-1)
	}
	return err
}

// emptyCache has nothing but what is pinned in the worker's cache, nor in the page
// cache. A chunk that was read before may be stored after its reader has it.
func (b *coldBench) emptyCache(ctx context.Context, folder *cache.Folder, row *coldRow) error {
	var used int64
	err := b.until(ctx, "", emptyPatience, func() (_ bool, err error) {
		if row.CacheLeft, err = folder.Empty(ctx, !b.Pinned); err != nil {
			return false, err
		}
		unix.Sync() // dirty pages are not dropped
		if err := os.WriteFile(dropCaches, []byte("3\n"), 0); err != nil {
			return false, fmt.Errorf("dropping the page cache: %w", err)
		}
		used = folder.Stats().Used
		return used == row.CacheLeft, nil
	})
	if errors.Is(err, errLate) {
		return fmt.Errorf("the cache cannot be emptied: it has %d bytes: does somebody else use the worker?", used)
	}
	return err
}

// preparePartial has the function's image mounted, its chunks cached, and slots
// prepared, with no instance.
func (b *coldBench) preparePartial(ctx context.Context, _ *coldRow, function string) error {
	began := time.Now()
	sent := b.invoke(ctx, function, "{}", types.InvocationTypeRequestResponse)
	if sent.err != nil {
		return sent.err
	}
	if _, err := b.reports(ctx, function, began, []sentEvent{sent}); err != nil {
		return err
	}
	if err := b.empty(ctx, "?keep=images"); err != nil {
		return err
	}
	return b.until(ctx, "no slots are prepared", emptyPatience, func() (bool, error) {
		var s invokewire.WorkerState
		err := b.fleet.ask(ctx, "GET", b.worker, "/state", &s)
		return s.Slots > 0 && s.Running == 0, err
	})
}

// empty has the worker end what is idle, until nothing is left that could end.
func (b *coldBench) empty(ctx context.Context, query string) error {
	var e worker.Emptied
	err := b.until(ctx, "", emptyPatience, func() (bool, error) {
		e = worker.Emptied{}
		err := b.fleet.ask(ctx, "POST", b.worker, "/empty"+query, &e)
		return e.Busy == 0 && len(e.Attached) == 0, err
	})
	if errors.Is(err, errLate) {
		return fmt.Errorf("the worker cannot be emptied: %d instances work; attached: %q: does somebody else use it?", e.Busy, e.Attached)
	}
	return err
}

// until waits for what is.
func (b *coldBench) until(ctx context.Context, what string, within time.Duration, is func() (bool, error)) error {
	err := poll(ctx, benchLook, within, is)
	if errors.Is(err, errLate) {
		err = fmt.Errorf("%w: %s", err, what)
	}
	return err
}

// sentEvent is an event that was sent.
type sentEvent struct {
	id    string
	at    time.Time
	total float64 // ms, once an answer has come; 0 of those that are queued
	err   error
}

// s3Event is what a bucket sends of one object; the sample function does what "do" says.
const s3Event = `{"Records":[{"eventVersion":"2.1","eventSource":"aws:s3","awsRegion":%q,"eventTime":%q,"eventName":"ObjectCreated:Put",` +
	`"s3":{"s3SchemaVersion":"1.0","configurationId":"bench","bucket":{"name":"bench","arn":"arn:aws:s3:::bench"},"object":{"key":"object-%d","size":1}}}],"do":{"sleep_ms":%d}}`

// send sends n events at once.
func (b *coldBench) send(ctx context.Context, function string, n int) []sentEvent {
	kind := types.InvocationTypeEvent
	if b.By == "invokes" {
		kind = types.InvocationTypeRequestResponse
	}
	sent := make([]sentEvent, n)
	var work sync.WaitGroup
	for i := range sent {
		payload := fmt.Sprintf(s3Event, b.Region, time.Now().UTC().Format(time.RFC3339Nano), i, b.Hold.Milliseconds())
		work.Go(func() { sent[i] = b.invoke(ctx, function, payload, kind) })
	}
	work.Wait()
	return sent
}

// invoke sends one event, once. Who waits for the answer asks for the log's tail
// too: that comes when the function has ended, as the REPORT's duration does, so
// that what is left of the total is the platform's.
func (b *coldBench) invoke(ctx context.Context, function, payload string, kind types.InvocationType) (s sentEvent) {
	in := &lambda.InvokeInput{FunctionName: &function, Payload: []byte(payload), InvocationType: kind}
	if kind != types.InvocationTypeEvent {
		in.LogType = types.LogTypeTail
	}
	s.at = time.Now()
	out, err := b.functions.Invoke(ctx, in, func(o *lambda.Options) { o.RetryMaxAttempts = 1 })
	if kind != types.InvocationTypeEvent {
		s.total = ms(time.Since(s.at))
	}
	if err != nil {
		s.err = plain(err)
		return s
	}
	s.id, _ = awsmiddleware.GetRequestIDMetadata(out.ResultMetadata)
	if f := aws.ToString(out.FunctionError); f != "" {
		s.err = fmt.Errorf("the function failed: %s: %.200s", f, out.Payload)
	}
	return s
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// coldSample is one invoke that has ended, in ms.
type coldSample struct {
	stream                string
	total, init, duration float64
	cold                  bool
}

// reports waits until the log tells the end of all that was sent.
func (b *coldBench) reports(ctx context.Context, function string, began time.Time, sent []sentEvent) ([]coldSample, error) {
	open := map[string]sentEvent{}
	var failed error
	for _, s := range sent {
		if s.err != nil {
			failed = s.err
			continue
		}
		open[s.id] = s
	}
	if len(open) == 0 {
		return nil, failed
	}
	read := reports{open: open, seen: map[string]bool{}}
	err := b.until(ctx, "some invokes have no REPORT", b.Hold*time.Duration(1+b.Parallel)+startPatience, func() (bool, error) {
		err := b.events(ctx, usualLog(function), anyReport, began, read.take)
		if groupMissing(err) {
			err = nil // nothing has been logged yet
		}
		return len(open) == 0, err
	})
	if errors.Is(err, errLate) && len(read.samples) > 0 {
		err = nil // those that failed are counted
	}
	return read.samples, err
}

// reports reads a log for the ends of invokes.
type reports struct {
	open    map[string]sentEvent // that have no end yet, by id
	seen    map[string]bool      // streams that have had their first invoke
	samples []coldSample
}

// take takes a line.
func (r *reports) take(e logtypes.FilteredLogEvent) error {
	told, _ := parseReport(aws.ToString(e.Message))
	s, waits := r.open[told.id]
	if !waits {
		return nil
	}
	delete(r.open, told.id)
	one := coldSample{stream: aws.ToString(e.LogStreamName), total: s.total, duration: told.duration}
	if told.cold && !r.seen[one.stream] {
		one.cold, one.init = true, told.init
	}
	r.seen[one.stream] = true
	if one.total == 0 {
		one.total = ms(time.UnixMilli(aws.ToInt64(e.Timestamp)).Sub(s.at))
	}
	r.samples = append(r.samples, one)
	return nil
}

// groupMissing tells the error for a function that has no log yet.
func groupMissing(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "ResourceNotFoundException")
}

// take adds a round's samples.
func (r *coldRow) take(samples []coldSample, sent int) {
	r.Failed += sent - len(samples)
	for _, s := range samples {
		if !s.cold {
			r.Warm++
			continue
		}
		r.Cold++
		r.inits, r.totals = append(r.inits, s.init), append(r.totals, s.total)
		r.platforms = append(r.platforms, s.total-s.init-s.duration)
	}
}

// busyTime is how long the machine's processors have worked since its start, in
// ms, to the 10 ms that proc(5) counts in; 0 if it cannot be known.
func busyTime() (sum float64) {
	const tick = 10 // USER_HZ is 100 on every architecture that Go knows
	text, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(text), "\n")
	for i, word := range strings.Fields(line) {
		if i < 1 || i > 7 || i == 4 || i == 5 { // idle, waiting for a disk; guests' time is the user's too
			continue
		}
		n, _ := strconv.ParseFloat(word, 64)
		sum += n * tick
	}
	return sum
}

// numbers asks fetchers and agents until take finds no error in what they say: on
// a machine that is busy with starts, one that is fine may be late.
func (b *coldBench) numbers(ctx context.Context, take func(host.Numbers) error) error {
	var silent error
	err := b.until(ctx, "", answerPatience, func() (bool, error) {
		n, err := b.host.Ask(ctx)
		if err == nil {
			silent = take(n)
		}
		return silent == nil, err
	})
	if errors.Is(err, errLate) {
		return silent
	}
	return err
}

// fetched is what the fetcher has brought since it was started.
func (b *coldBench) fetched(ctx context.Context) (s cache.Stats, err error) {
	err = b.numbers(ctx, func(n host.Numbers) error {
		if len(n.Fetchers) != 1 || n.Fetchers[0].Err != nil {
			return errors.New("the worker's fetcher does not say what it does")
		}
		s = n.Fetchers[0].Stats.Stats
		return nil
	})
	return s, err
}

// touched adds what the agents have read: all that run have been started since
// the round began.
func (b *coldBench) touched(ctx context.Context, row *coldRow) error {
	return b.numbers(ctx, func(n host.Numbers) error {
		var sum tierCounts
		for _, i := range n.Images {
			if i.Err != nil {
				return fmt.Errorf("an agent does not say what it has read: %w", i.Err)
			}
			sum.Cache.add(i.Stats.Cache.Chunks, i.Stats.Cache.Bytes)
			sum.Zone.add(i.Stats.Zone.Chunks, i.Stats.Zone.Bytes)
			sum.Origin.add(i.Stats.Origin.Chunks, i.Stats.Origin.Bytes)
		}
		row.Touched.Cache.add(sum.Cache.Chunks, sum.Cache.Bytes)
		row.Touched.Zone.add(sum.Zone.Chunks, sum.Zone.Bytes)
		row.Touched.Origin.add(sum.Origin.Chunks, sum.Origin.Bytes)
		return nil
	})
}

// stagesSince adds what the worker has measured of the starts of a function.
func (b *coldBench) stagesSince(ctx context.Context, row *coldRow, function string, began time.Time) error {
	var starts []struct {
		Function, Kind, Error string
		Began                 time.Time
		Stages                map[string]int64 // µs
	}
	if err := b.fleet.ask(ctx, "GET", b.worker, "/starts", &starts); err != nil {
		return err
	}
	for _, s := range starts {
		if s.Function != function || s.Began.Before(began) || s.Error != "" {
			continue
		}
		row.Starts[s.Kind]++
		for stage, took := range s.Stages {
			row.stages[stage] = append(row.stages[stage], float64(took)/1000)
		}
	}
	return nil
}
