package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"golang.org/x/sync/errgroup"

	"thaw/sdkhttp"
)

// logsClient is a client of CloudWatch Logs with the same keys.
func (k *contract) logsClient() *cloudwatchlogs.Client {
	o := k.c.Options()
	return cloudwatchlogs.New(cloudwatchlogs.Options{Region: o.Region, BaseEndpoint: o.BaseEndpoint, Credentials: o.Credentials, HTTPClient: sdkhttp.Client(), Retryer: aws.NopRetryer{}})
}

// tailing follows a log by the calls that `aws logs tail --follow` makes in
// version 2 of the CLI: page after page, and then again from the time of the
// newest event. Of those it knows the ids of that time's alone, so what comes
// later with an earlier time, or by another id, it misses or tells twice.
type tailing struct {
	logs  *cloudwatchlogs.Client
	in    cloudwatchlogs.FilterLogEventsInput
	known map[string]bool // ids of the newest time
	told  map[string]int  // how often, by stream and text
	pages int             // that a token led to
}

// look asks once. It tells whether all that there was has been told.
func (l *tailing) look(ctx context.Context) (bool, error) {
	out, err := l.logs.FilterLogEvents(ctx, &l.in)
	if err != nil {
		return false, err
	}
	newest := aws.ToInt64(l.in.StartTime)
	for _, e := range out.Events {
		if at := aws.ToInt64(e.Timestamp); at > newest {
			newest = at
			clear(l.known)
		}
		if id := aws.ToString(e.EventId); aws.ToInt64(e.Timestamp) < newest || !l.known[id] {
			l.known[id] = true
			l.told[lineOf(e)]++
		}
	}
	if l.in.NextToken = out.NextToken; out.NextToken != nil {
		l.pages++
		return false, nil
	}
	l.in.StartTime = &newest
	return true, nil
}

func lineOf(e types.FilteredLogEvent) string {
	return aws.ToString(e.LogStreamName) + " " + aws.ToString(e.Message)
}

// tail follows a function's log while several instances write to it, first more
// than a page, and is told each line once, as is who asks for all of it afterwards.
func (k *contract) tail(t *testing.T) {
	const flood, callers, each = 12_000, 4, 60
	k.create(t, "chatty", timeout(60))
	begun := time.Now().UnixMilli()
	logs := k.logsClient()
	begin := func() *tailing {
		return &tailing{logs: logs, known: map[string]bool{}, told: map[string]int{}, in: cloudwatchlogs.FilterLogEventsInput{
			LogGroupName: aws.String("/aws/lambda/chatty"), Interleaved: aws.Bool(true), StartTime: &begun,
		}}
	}
	k.invoke(t, "chatty", fmt.Sprintf(`{"do":{"log_lines":%d,"log_text":"at once"}}`, flood))
	follows := begin()
	var load errgroup.Group
	var said, ended atomic.Int64
	for range callers {
		load.Go(func() error {
			defer ended.Add(1)
			for range each {
				in := &lambda.InvokeInput{FunctionName: aws.String("chatty"), Payload: fmt.Appendf(nil, `{"do":{"log_text":"said %d"}}`, said.Add(1))}
				if _, err := k.c.Invoke(t.Context(), in); err != nil {
					return err
				}
			}
			return nil
		})
	}
	var whole *tailing
	k.until(t, "the log is whole", func() bool { // an answer may come before the end of its log
		_, err := follows.look(t.Context())
		try(t, err)
		if ended.Load() < callers {
			return false
		}
		whole = begin()
		try(t, whole.all(t.Context()))
		return whole.count("REPORT RequestId: ") == 1+callers*each
	})
	try(t, load.Wait())
	try(t, follows.all(t.Context()))
	for what, l := range map[string]*tailing{"who follows": follows, "who comes later": whole} {
		if n := l.count("line "); n != flood || l.pages == 0 {
			t.Errorf("%s is told %d lines of %d, on %d pages by a token", what, n, flood, l.pages)
		}
		if n := l.count("said "); n != callers*each {
			t.Errorf("%s is told what %d invokes of %d said", what, n, callers*each)
		}
		for line, n := range l.told {
			if n > 1 {
				t.Errorf("%s is told %d times: %s", what, n, line)
			}
		}
	}
	for line := range whole.told {
		if follows.told[line] == 0 {
			t.Errorf("who follows is not told: %s", line)
		}
	}
}

// all looks until there is no more.
func (l *tailing) all(ctx context.Context) error {
	for {
		if end, err := l.look(ctx); end || err != nil {
			return err
		}
	}
}

// count is how many lines begin so.
func (l *tailing) count(prefix string) (n int) {
	for line := range l.told {
		if _, text, _ := strings.Cut(line, " "); strings.HasPrefix(text, prefix) {
			n++
		}
	}
	return n
}
