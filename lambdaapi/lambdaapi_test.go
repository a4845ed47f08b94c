package lambdaapi

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// request makes one as a server gets it.
func request(method, target, body string) *http.Request {
	return httptest.NewRequest(method, target, strings.NewReader(body))
}

// ask routes and decodes a request.
func ask[In any](t *testing.T, method, target, body string) (*In, error) {
	t.Helper()
	r := request(method, target, body)
	_, vars, err := Route(r)
	if err != nil {
		t.Fatal(err)
	}
	return Decode[In](r, vars, []byte(body))
}

const functions = "/2015-03-31/functions"

func TestDecode(t *testing.T) {
	in, err := ask[CreateFunctionRequest](t, "POST", functions, `{"FunctionName":"f","Role":"arn:aws:iam::000000000000:role/r",
		"Code":{"ZipFile":"aGk=","Unknown":[{"a":1}]},"Timeout":3,"Publish":true,"Description":null,"functionname":"other",
		"Environment":{"Variables":{"AB":"1"}},"Layers":[],"ImageConfig":{"Command":["a","b"]},"Other":{"x":[1,2,{"y":null}]}}`)
	if err != nil {
		t.Fatal(err)
	}
	if in.FunctionName != "f" || string(in.Code.ZipFile) != "hi" || *in.Timeout != 3 || !*in.Publish || in.Description != nil || in.MemorySize != nil ||
		in.Environment.Variables["AB"] != "1" || in.Layers == nil || len(in.Layers) != 0 || strings.Join(in.ImageConfig.Command, "") != "ab" {
		t.Errorf("%+v", in)
	}
}

func TestTime(t *testing.T) {
	at := time.Date(2026, 11, 21, 19, 48, 31, 250e6, time.UTC)
	if got := FormatTime(at); got != "2026-11-21T19:48:31.250+0000" {
		t.Error(got)
	}
	data, err := Time{at}.MarshalJSON()
	if err != nil || string(data) != "1795290511.25" {
		t.Error(string(data), err)
	}
	if back, err := parseTime(string(data)); err != nil || !back.Equal(at) {
		t.Error(back, err)
	}
}
