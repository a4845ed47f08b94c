package frontend

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"thaw/functions"
)

// notify posts a notification.
func (d *door) notify(path, bearer, body string) (int, string) {
	d.t.Helper()
	r, err := http.NewRequest(http.MethodPost, d.url+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func s3Record(bucket string) string {
	return fmt.Sprintf(`{"eventVersion":"2.0","eventSource":"minio:s3","eventName":"s3:ObjectCreated:Put","s3":{"s3SchemaVersion":"1.0","bucket":{"name":%q},"object":{"key":"a%%20b","size":3}}}`, bucket)
}

func TestS3Notifications(t *testing.T) {
	d := newDoor(t)
	d.function("f", func(f *functions.Function) {
		f.Policies = map[string][]functions.Statement{"": {
			{Sid: "1", Action: "lambda:InvokeFunction", Principal: "s3.amazonaws.com", SourceARN: "arn:aws:s3:::photos-*"},
			{Sid: "2", Action: "lambda:InvokeFunction", Principal: "sns.amazonaws.com"},
		}}
	})
	got := make(chan []byte, 1)
	d.worker.script = func(payload []byte) []byte { got <- payload; return []byte("1") }
	path := "/s3/000000000000/f"
	if status, body := d.notify(path, "", `{"EventName":"s3:ObjectCreated:Put","Key":"photos-1/a","Records":[`+s3Record("photos-1")+`,`+s3Record("photos-2")+`]}`); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	var e struct {
		Records []struct {
			EventSource, EventName string
			S3                     struct {
				Bucket struct{ Name string }
				Object struct{ Key string }
			}
		}
	}
	if err := json.Unmarshal(<-got, &e); err != nil || len(e.Records) != 2 || e.Records[0].EventSource != "aws:s3" ||
		e.Records[0].EventName != "ObjectCreated:Put" || e.Records[1].S3.Bucket.Name != "photos-2" || e.Records[0].S3.Object.Key != "a%20b" {
		t.Errorf("the function got %+v, %v", e, err)
	}
	good := `{"Records":[` + s3Record("photos-1") + `]}`
	stranger := must(d.options.Keys.Create(t.Context(), "111111111111", ""))
	for _, c := range []struct {
		name, path, bearer, body string
		status                   int
	}{
		{"another bucket", path, "", `{"Records":[` + s3Record("videos") + `]}`, 403},
		{"one of them another", path, "", `{"Records":[` + s3Record("photos-1") + `,` + s3Record("videos") + `]}`, 403},
		{"a version that has no policy", path + ":1", "", good, 403},
		{"two names", path, "", `{"Records":[` + twoBuckets + `]}`, 403},
		{"no function", "/s3/000000000000/g", "", good, 404},
		{"no account", "/s3/f", "", good, 404},
		{"no JSON", path, "", "{", 400},
		{"no bucket", path, "", `{"Records":[{}]}`, 400},
		{"a record that is none", path, "", `{"Records":[1]}`, 400},
		{"a test", path, "", `{"Service":"Amazon S3","Event":"s3:TestEvent","Bucket":"photos-1"}`, 200},
		{"a key", path, d.key.ID + "/" + d.key.Secret, good, 200},
		{"a wrong key", path, d.key.ID + "/x", good, 403},
		{"a stranger's key", path, stranger.ID + "/" + stranger.Secret, good, 403},
		{"too long", path, "", `{"Records":["` + strings.Repeat("x", 1<<20) + `"]}`, 413},
	} {
		t.Run(c.name, func(t *testing.T) {
			if status, body := d.notify(c.path, c.bearer, c.body); status != c.status || strings.Contains(body, d.key.Secret) {
				t.Errorf("%d %s, want %d", status, body, c.status)
			}
		})
	}
	<-got // of the one with a key
	if isLoopback("10.0.0.1:1") || !isLoopback("[::1]:1") || !isLoopback("127.0.0.2:1") || isLoopback("x") {
		t.Error("loopback is not told from others")
	}
}

func TestMatchARN(t *testing.T) {
	for _, c := range []struct {
		pattern, arn string
		want         bool
	}{
		{"arn:aws:s3:::a", "arn:aws:s3:::a", true}, {"arn:aws:s3:::a", "arn:aws:s3:::ab", false}, {"arn:aws:s3:::a*", "arn:aws:s3:::ab", true},
		{"arn:aws:s3:::a?", "arn:aws:s3:::a.", true}, {"arn:aws:s3:::a.b", "arn:aws:s3:::axb", false}, {"*", "x", true}, {"[", "x", false},
	} {
		if matchARN(c.pattern, c.arn) != c.want {
			t.Errorf("%s, %s: %v", c.pattern, c.arn, !c.want)
		}
	}
}

// Each condition of a permission is held to.
func TestLetsBucket(t *testing.T) {
	const bucket, account = "arn:aws:s3:::photos", "000000000000"
	ok := functions.Statement{Action: "lambda:InvokeFunction", Principal: "s3.amazonaws.com"}
	for name, c := range map[string]struct {
		change func(*functions.Statement)
		want   bool
	}{
		"no condition":    {func(*functions.Statement) {}, true},
		"everybody":       {func(s *functions.Statement) { s.Principal = "*" }, true},
		"any action":      {func(s *functions.Statement) { s.Action = "lambda:*" }, true},
		"its ARN":         {func(s *functions.Statement) { s.SourceARN = "arn:aws:s3:::pho*" }, true},
		"its account":     {func(s *functions.Statement) { s.SourceAccount = account }, true},
		"another ARN":     {func(s *functions.Statement) { s.SourceARN = bucket + "2" }, false},
		"another account": {func(s *functions.Statement) { s.SourceARN, s.SourceAccount = bucket, "111111111111" }, false},
		"another service": {func(s *functions.Statement) { s.Principal = "sns.amazonaws.com" }, false},
		"another action":  {func(s *functions.Statement) { s.Action = "lambda:GetFunction" }, false},
		"by URL":          {func(s *functions.Statement) { s.ViaURL = true }, false},
		"a URL's auth":    {func(s *functions.Statement) { s.URLAuth = "NONE" }, false},
		"an organization": {func(s *functions.Statement) { s.OrgID = "o-1234567890" }, false},
		"a token":         {func(s *functions.Statement) { s.EventToken = "t" }, false},
	} {
		s := ok
		c.change(&s)
		if got := letsBucket(s, bucket, account); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
