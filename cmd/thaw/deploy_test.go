//go:build cloud

package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"thaw/internal/testpty"
)

// TestDeployAsked: what no flag says is not sent, so that the API says what it
// misses; what is said is, whatever it is.
func TestDeployAsked(t *testing.T) {
	sent := make(chan map[string]any, 1)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := map[string]any{}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		sent <- body
		_, _ = w.Write([]byte("{}"))
	}))
	defer api.Close()
	p := &platform{functions: lambda.New(lambda.Options{Region: "us-east-1", BaseEndpoint: aws.String(api.URL), Credentials: aws.AnonymousCredentials{}})}
	for _, c := range []struct {
		deploy deployCmd
		want   map[string]any
	}{
		{deployCmd{Name: "f"}, nil},
		{deployCmd{Name: "f", Handler: "h", Memory: aws.Int32(0), Timeout: aws.Int32(7)}, map[string]any{"Handler": "h", "MemorySize": 0.0, "Timeout": 7.0}},
	} {
		if err := c.deploy.create(t.Context(), p, types.FunctionCode{ZipFile: []byte("zip")}); err != nil {
			t.Fatal(err)
		}
		body := <-sent
		for _, field := range []string{"Handler", "Runtime", "MemorySize", "Timeout", "EphemeralStorage", "Description"} {
			if got, want := body[field], c.want[field]; got != want {
				t.Errorf("%s is %v, want %v", field, got, want)
			}
		}
	}
}

// On a terminal deploy draws a line for each thing that it waits for, of a function
// that is made and of one that is changed; elsewhere it says nothing.
func TestDeployProgress(t *testing.T) {
	type now map[string]string
	making := func(reason string) now { return now{"State": "Pending", "StateReason": reason} }
	changing := func(reason string) now {
		return now{"State": "Active", "LastUpdateStatus": "InProgress", "LastUpdateStatusReason": reason}
	}
	ready := now{"State": "Active", "LastUpdateStatus": "Successful"}
	terminal := testpty.Open(t, 24, 80)
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, c := range []struct {
		name, drawn string
		stderr      *os.File
		answers     []now
	}{
		{"made", "queued\nlayer 1 of 2; half\n", terminal.TTY, []now{making("queued"), making("layer 1 of 2\nhalf"), making("layer 1 of 2\nhalf"), ready}},
		{"changed", "queued\nlayer 2 of 2\n", terminal.TTY, []now{changing("queued"), changing("layer 2 of 2"), ready}},
		{"ready", "", terminal.TTY, []now{ready}},
		{"in a file", "", file, []now{making("queued"), ready}},
	} {
		t.Run(c.name, func(t *testing.T) {
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_ = json.NewEncoder(w).Encode(map[string]now{"Configuration": c.answers[0]})
				c.answers = c.answers[min(1, len(c.answers)-1):]
			}))
			defer api.Close()
			p := &platform{functions: lambda.New(lambda.Options{Region: "us-east-1", BaseEndpoint: aws.String(api.URL), Credentials: aws.AnonymousCredentials{}})}
			got, err := (&deployCmd{Name: "f"}).wait(t.Context(), p, &Globals{stderr: c.stderr})
			if err != nil || got.State != "Active" {
				t.Errorf("%+v, %v", got, err)
			}
			_, _ = c.stderr.WriteString("|")
			if c.stderr != terminal.TTY {
				return
			}
			if drawn := terminal.Await("|"); drawn != c.drawn {
				t.Errorf("drawn %q, want %q", drawn, c.drawn)
			}
		})
	}
	if said, err := os.ReadFile(file.Name()); err != nil || string(said) != "|" {
		t.Errorf("in a file: %q, %v", said, err)
	}
}
