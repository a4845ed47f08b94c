//go:build cloud

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	lambdatypes "github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"thaw/invokewire"
)

const (
	// logLook is how often logs are asked for more.
	logLook = time.Second
	// logLate is how much later than others of its time a line may be told: its
	// worker's clock may be behind another's.
	logLate = 2 * time.Second
)

// functionLog is where a function's log is.
type functionLog struct{ group, function string }

// usualLog is the log of a function that has no other group, whatever qualifier it
// is named with.
func usualLog(name string) functionLog {
	if i := strings.LastIndex(name, ":function:"); i >= 0 {
		name = name[i+len(":function:"):]
	}
	name, _, _ = strings.Cut(name, ":")
	return functionLog{invokewire.LogPrefix + name, name}
}

// logOf asks for the group that a function has. One that is gone had the usual one.
func (p *platform) logOf(ctx context.Context, name string) (functionLog, error) {
	l := usualLog(name)
	f, err := p.functions.GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{FunctionName: &l.function})
	if missing := (*lambdatypes.ResourceNotFoundException)(nil); err != nil && !errors.As(err, &missing) {
		return l, plain(err)
	}
	if err == nil && f.LoggingConfig != nil {
		l.group = cmp.Or(aws.ToString(f.LoggingConfig.LogGroup), l.group)
	}
	return l, nil
}

// has tells whether a stream of the group is the function's: those of a group that
// others may share are named DATE/FUNCTION[VERSION]ID, else DATE/[VERSION]ID.
func (l functionLog) has(stream string) bool {
	of, _, _ := strings.Cut(stream[strings.LastIndexByte(stream, '/')+1:], "[")
	return of == "" || of == l.function
}

// events gives a log's events since a time, in order, page after page.
func (p *platform) events(ctx context.Context, l functionLog, pattern string, since time.Time, each func(types.FilteredLogEvent) error) error {
	in := &cloudwatchlogs.FilterLogEventsInput{LogGroupName: &l.group, StartTime: aws.Int64(since.UnixMilli())}
	if pattern != "" {
		in.FilterPattern = &pattern
	}
	pages := cloudwatchlogs.NewFilterLogEventsPaginator(p.logs, in)
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return plain(err)
		}
		for _, e := range page.Events {
			if !l.has(aws.ToString(e.LogStreamName)) {
				continue
			}
			if err := each(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// Run shows a function's log.
func (c *logsCmd) Run(ctx context.Context, g *Globals) error {
	p, err := g.platform()
	if err != nil {
		return err
	}
	from, err := p.logOf(ctx, c.Name)
	if err != nil {
		return err
	}
	look := time.NewTicker(logLook)
	defer look.Stop()
	since := time.Now().Add(-c.Since)
	newest, shown := since, map[string]time.Time{} // by event's id
	for {
		err := p.events(ctx, from, "", since, func(e types.FilteredLogEvent) error {
			id := aws.ToString(e.EventId)
			if _, again := shown[id]; again {
				return nil
			}
			at := time.UnixMilli(aws.ToInt64(e.Timestamp))
			shown[id] = at
			if at.After(newest) {
				newest = at
			}
			return c.show(g, e, at)
		})
		if err != nil || !c.Follow {
			return err
		}
		if late := newest.Add(-logLate); late.After(since) {
			since = late.Truncate(time.Millisecond) // the ids count lines of a millisecond
			maps.DeleteFunc(shown, func(_ string, at time.Time) bool { return at.Before(since) })
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *logsCmd) show(g *Globals, e types.FilteredLogEvent, at time.Time) error {
	message := strings.TrimRight(aws.ToString(e.Message), "\n")
	if c.JSON {
		return json.NewEncoder(g.stdout).Encode(map[string]any{"time": at.UTC(), "stream": aws.ToString(e.LogStreamName), "message": message})
	}
	_, err := fmt.Fprintf(g.stdout, "%s %s\n", at.UTC().Format("2006-01-02T15:04:05.000Z"), message)
	return err
}

// anyReport is the filter for what parseReport reads.
const anyReport = `?REPORT ?"platform.report"`

// invokeReport is the end of an invoke as a log tells it.
type invokeReport struct {
	id             string
	duration, init float64 // milliseconds
	cold           bool    // init is told
}

// parseReport reads a line of a log, of either format; false: it is no report.
func parseReport(line string) (r invokeReport, ok bool) {
	if m := reportLine.FindStringSubmatch(line); m != nil {
		r.id, r.cold = m[1], m[3] != ""
		r.duration, _ = strconv.ParseFloat(m[2], 64) // digits and dots
		r.init, _ = strconv.ParseFloat(m[3], 64)
		return r, true
	}
	var event struct {
		Type   string
		Record struct {
			RequestID string
			Metrics   struct {
				DurationMs     float64
				InitDurationMs *float64
			}
		}
	}
	if json.Unmarshal([]byte(line), &event) != nil || event.Type != "platform.report" {
		return r, false
	}
	r.id, r.duration = event.Record.RequestID, event.Record.Metrics.DurationMs
	if init := event.Record.Metrics.InitDurationMs; init != nil {
		r.init, r.cold = *init, true
	}
	return r, true
}

// reportLine finds a REPORT line's request and milliseconds.
var reportLine = regexp.MustCompile(`^REPORT RequestId: (\S+)\tDuration: ([0-9.]+) ms\tBilled Duration: \d+ ms\tMemory Size: \d+ MB\tMax Memory Used: \d+ MB\t(?:Init Duration: ([0-9.]+) ms\t)?`)

// summary is a table's row: milliseconds.
type summary struct {
	Count                       int `json:"count"`
	Min, Max, Mean, Median, P95 float64
}

// MarshalJSON names the fields as the table does.
func (s summary) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{"count": s.Count, "min_ms": s.Min, "max_ms": s.Max, "mean_ms": s.Mean, "median_ms": s.Median, "p95_ms": s.P95})
}

// summarize makes a row of values in any order.
func summarize(values []float64) (s summary) {
	if len(values) == 0 {
		return s
	}
	slices.Sort(values)
	s.Count, s.Min, s.Max = len(values), values[0], values[len(values)-1]
	for _, v := range values {
		s.Mean += v / float64(len(values))
	}
	rank := func(q float64) float64 { return values[max(0, int(math.Ceil(q*float64(len(values))))-1)] } // nearest rank
	s.Median, s.P95 = rank(0.5), rank(0.95)
	return s
}

// Run shows how long cold starts took.
func (c *coldstartsCmd) Run(ctx context.Context, g *Globals) error {
	p, err := g.platform()
	if err != nil {
		return err
	}
	var inits, durations []float64
	all := 0
	from, err := p.logOf(ctx, c.Name)
	if err != nil {
		return err
	}
	err = p.events(ctx, from, anyReport, time.Now().Add(-c.Since), func(e types.FilteredLogEvent) error {
		r, ok := parseReport(aws.ToString(e.Message))
		if !ok {
			return nil
		}
		all++
		if r.cold {
			inits, durations = append(inits, r.init), append(durations, r.duration)
		}
		return nil
	})
	if err != nil {
		return err
	}
	rows := []struct {
		name string
		summary
	}{{"init", summarize(inits)}, {"duration", summarize(durations)}}
	if c.JSON {
		return json.NewEncoder(g.stdout).Encode(map[string]any{"name": c.Name, "invokes": all, "cold": len(inits), "init": rows[0].summary, "duration": rows[1].summary})
	}
	fmt.Fprintf(g.stdout, "%d of %d invokes were cold.\n", len(inits), all)
	w := tabwriter.NewWriter(g.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "OF COLD STARTS\tCOUNT\tMIN\tMAX\tMEAN\tMEDIAN\tP95")
	for _, r := range rows {
		fmt.Fprintf(w, "%s, ms\t%d\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\n", r.name, r.Count, r.Min, r.Max, r.Mean, r.Median, r.P95)
	}
	return w.Flush()
}
