package frontend

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"thaw/functions"
	"thaw/invokewire"
)

// askLogs sends a signed request as clients of CloudWatch Logs do.
func (d *door) askLogs(op, body string, out any) (status int, kind string) {
	d.t.Helper()
	r, err := http.NewRequest(http.MethodPost, d.url+"/", strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	r.Header.Set("X-Amz-Target", logsTarget+op)
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	err = v4.NewSigner().SignHTTP(context.Background(), aws.Credentials{AccessKeyID: d.key.ID, SecretAccessKey: d.key.Secret}, r, hashOf(body), "logs", testRegion, time.Now())
	if err != nil {
		d.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, _ = b.ReadFrom(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode, resp.Header.Get("X-Amzn-Errortype")
	}
	if err := json.Unmarshal(b.Bytes(), out); err != nil {
		d.t.Fatalf("%s: %v", b.String(), err)
	}
	return resp.StatusCode, ""
}

type logsAnswer struct {
	Events            []logEvent
	LogStreams        []logStream
	LogGroups         []logGroup
	NextToken         string
	NextForwardToken  string
	NextBackwardToken string
}

func TestLogs(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	d.function("g")
	for n := range 30 {
		d.worker.tell(invokewire.LogEvent{Time: int64(1000 + n/4), Stream: fmt.Sprint("s", n%2), Message: fmt.Sprint("line ", n, " of f")})
	}
	d.until("the worker is known", func() bool { return len(d.workers.addresses()) == 1 })
	var groups logsAnswer
	if status, kind := d.askLogs("DescribeLogGroups", `{"logGroupNamePrefix":"/aws/lambda/"}`, &groups); status != 200 || len(groups.LogGroups) != 2 || groups.LogGroups[0].Name != "/aws/lambda/f" {
		t.Errorf("groups: %d %s %+v", status, kind, groups)
	}
	var streams logsAnswer
	d.askLogs("DescribeLogStreams", `{"logGroupName":"/aws/lambda/f","orderBy":"LastEventTime","descending":true,"limit":1}`, &streams)
	if len(streams.LogStreams) != 1 || streams.LogStreams[0].Name != "s1" || streams.NextToken == "" {
		t.Errorf("streams: %+v", streams)
	}
	// All pages together are all events, each once and in order: by time, and stream
	// by stream within a millisecond.
	want := strings.Fields("4 6 5 7 8 10 9 11 12 14 13 15 16 18 17 19 20 22 21 23 24 26 25 27 28 29")
	for _, limit := range []int{0, 1, 3, 7} {
		ids, token, lines := map[string]bool{}, "", 0
		for page := 0; page == 0 || token != ""; page++ {
			var a logsAnswer
			body := fmt.Sprintf(`{"logGroupName":"/aws/lambda/f","startTime":1001,"limit":%d,"interleaved":true,"nextToken":%q}`, limit, token)
			if status, kind := d.askLogs("FilterLogEvents", body, &a); status != 200 {
				t.Fatalf("%d %s", status, kind)
			}
			for _, e := range a.Events {
				if ids[e.ID] || lines >= len(want) || e.Message != "line "+want[lines]+" of f" {
					t.Fatalf("limit %d: event %d is %+v", limit, lines, e)
				}
				ids[e.ID] = true
				lines++
			}
			token = a.NextToken
		}
		if lines != 26 {
			t.Errorf("limit %d: %d lines, want 26", limit, lines)
		}
	}
	var some logsAnswer
	d.askLogs("FilterLogEvents", `{"logGroupName":"/aws/lambda/f","logStreamNames":["s1"],"filterPattern":"\"line 1\" -of"}`, &some)
	if len(some.Events) != 0 {
		t.Errorf("filtered: %+v", some.Events)
	}
	d.askLogs("FilterLogEvents", `{"logGroupIdentifier":"arn:aws:logs:us-east-1:000000000000:log-group:/aws/lambda/f:*","logStreamNames":["s1"],"filterPattern":"?29 ?27 line"}`, &some)
	if len(some.Events) != 2 {
		t.Errorf("filtered: %+v", some.Events)
	}
	var tail logsAnswer
	d.askLogs("GetLogEvents", `{"logGroupName":"/aws/lambda/f","logStreamName":"s0","limit":10}`, &tail)
	if len(tail.Events) != 10 || tail.Events[9].Message != "line 28 of f" {
		t.Fatalf("tail: %+v", tail)
	}
	var before logsAnswer
	d.askLogs("GetLogEvents", `{"logGroupName":"/aws/lambda/f","logStreamName":"s0","limit":10,"nextToken":"`+tail.NextBackwardToken+`"}`, &before)
	if len(before.Events) != 5 || before.Events[0].Message != "line 0 of f" {
		t.Errorf("before: %+v", before)
	}
	var after logsAnswer
	d.askLogs("GetLogEvents", `{"logGroupName":"/aws/lambda/f","logStreamName":"s0","nextToken":"`+tail.NextForwardToken+`"}`, &after)
	if len(after.Events) != 0 || after.NextForwardToken != tail.NextForwardToken {
		t.Errorf("after: %+v", after)
	}
}

// A function's log is in the group that it is given, and in no other.
func TestLogGroup(t *testing.T) {
	d := newDoor(t)
	made := time.UnixMilli(1_700_000_000_123)
	for n, name := range []string{"g", "f"} {
		d.function(name, func(f *functions.Function) {
			f.Latest.LogGroup, f.Created = "/my/group", made.Add(-time.Duration(n)*time.Hour)
		})
	}
	d.worker.tell(invokewire.LogEvent{Time: 1000, Stream: "s", Message: "a line of f"})
	d.until("the worker is known", func() bool { return len(d.workers.addresses()) == 1 })
	var a logsAnswer
	if d.askLogs("DescribeLogGroups", `{}`, &a); len(a.LogGroups) != 1 || a.LogGroups[0].Name != "/my/group" || a.LogGroups[0].Created != made.Add(-time.Hour).UnixMilli() {
		t.Errorf("groups: %+v", a.LogGroups)
	}
	if status, kind := d.askLogs("FilterLogEvents", `{"logGroupName":"/my/group"}`, &a); status != http.StatusOK || len(a.Events) != 1 {
		t.Errorf("its own: %d %s %+v", status, kind, a.Events)
	}
	if status, kind := d.askLogs("FilterLogEvents", `{"logGroupName":"/aws/lambda/f"}`, nil); status != http.StatusBadRequest || kind != "ResourceNotFoundException" {
		t.Errorf("the usual one: %d %s", status, kind)
	}
}

// What is too many bytes for one answer of a worker comes with the next: each line
// once, in order, also where several are of one millisecond.
func TestLogsOfManyBytes(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	const lines = 3*maxLogBytes/longest + 1
	for n := range lines {
		d.worker.tell(invokewire.LogEvent{Time: int64(1000 + n/4), Stream: "s", Message: fmt.Sprintf("%d %s", n, strings.Repeat("x", longest))})
	}
	d.until("the worker is known", func() bool { return len(d.workers.addresses()) == 1 })
	next, token := 0, ""
	for page := 0; page == 0 || token != ""; page++ {
		var a logsAnswer
		if status, kind := d.askLogs("FilterLogEvents", fmt.Sprintf(`{"logGroupName":"/aws/lambda/f","nextToken":%q}`, token), &a); status != 200 || page > 4 {
			t.Fatalf("page %d: %d %s", page, status, kind)
		}
		for _, e := range a.Events {
			if !strings.HasPrefix(e.Message, fmt.Sprint(next, " ")) {
				t.Fatalf("line %.10q, want %d", e.Message, next)
			}
			next++
		}
		token = a.NextToken
	}
	if next != lines {
		t.Errorf("%d lines, want %d", next, lines)
	}
}

// longest is how long a line of a log is at most.
const longest = 256 << 10

// Another account sees neither groups nor streams nor lines, by whatever name.
func TestLogsOfAnother(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	d.worker.tell(invokewire.LogEvent{Time: 1000, Stream: "s", Message: "a line of f"})
	d.until("the worker is known", func() bool { return len(d.workers.addresses()) == 1 })
	const arn = `"logGroupIdentifier":"arn:aws:logs:us-east-1:000000000000:log-group:/aws/lambda/f"`
	var own logsAnswer
	if status, kind := d.askLogs("FilterLogEvents", `{`+arn+`}`, &own); status != http.StatusOK || len(own.Events) != 1 {
		t.Fatalf("its own: %d %s %+v", status, kind, own)
	}
	other := *d
	other.key = must(d.options.Keys.Create(t.Context(), "111111111111", ""))
	var groups logsAnswer
	if status, kind := other.askLogs("DescribeLogGroups", `{}`, &groups); status != http.StatusOK || len(groups.LogGroups) != 0 {
		t.Errorf("groups: %d %s %+v", status, kind, groups)
	}
	for _, op := range []string{"DescribeLogStreams", "FilterLogEvents", "GetLogEvents"} {
		for _, group := range []string{`"logGroupName":"/aws/lambda/f"`, arn} {
			if status, kind := other.askLogs(op, `{`+group+`,"logStreamName":"s"}`, nil); status != http.StatusBadRequest || kind != "ResourceNotFoundException" {
				t.Errorf("%s of %s: %d %s", op, group, status, kind)
			}
		}
	}
}

func TestLogsRefuses(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	for _, c := range []struct{ op, body, kind string }{
		{"FilterLogEvents", `{"logGroupName":"/aws/lambda/none"}`, "ResourceNotFoundException"},
		{"FilterLogEvents", `{"logGroupName":"other"}`, "ResourceNotFoundException"},
		{"FilterLogEvents", `{}`, "InvalidParameterException"},
		{"FilterLogEvents", `{`, "InvalidParameterException"},
		{"FilterLogEvents", `{"logGroupName":"/aws/lambda/f","limit":10001}`, "InvalidParameterException"},
		{"FilterLogEvents", `{"logGroupName":"/aws/lambda/f","nextToken":"?"}`, "InvalidParameterException"},
		{"FilterLogEvents", `{"logGroupName":"/aws/lambda/f","filterPattern":"{ $.a = 1 }"}`, "InvalidParameterException"},
		{"FilterLogEvents", `{"logGroupName":"/aws/lambda/f","filterPattern":"\"a"}`, "InvalidParameterException"},
		{"GetLogEvents", `{"logGroupName":"/aws/lambda/f"}`, "InvalidParameterException"},
		{"GetLogEvents", `{"logGroupName":"/aws/lambda/f","logStreamName":"none"}`, "ResourceNotFoundException"},
		{"PutLogEvents", `{}`, "UnknownOperationException"},
	} {
		if status, kind := d.askLogs(c.op, c.body, nil); status != http.StatusBadRequest || kind != c.kind {
			t.Errorf("%s %s: %d %s, want %s", c.op, c.body, status, kind, c.kind)
		}
	}
	r, _ := http.NewRequest(http.MethodPost, d.url+"/", strings.NewReader("{}"))
	r.Header.Set("X-Amz-Target", logsTarget+"DescribeLogGroups")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("unsigned: %d", resp.StatusCode)
	}
}

func FuzzFilterPattern(f *testing.F) {
	for _, s := range []string{`a b`, `"a b" -c`, `?a ?b`, `"`, `- -`, `?`} {
		f.Add(s, "a line")
	}
	f.Fuzz(func(t *testing.T, pattern, line string) {
		if match, err := parsePattern(pattern); err == nil {
			match(line)
		}
	})
}
