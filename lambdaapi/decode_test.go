package lambdaapi

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestDecodeRefuses(t *testing.T) {
	for body, want := range map[string]string{
		`{"FunctionName":5}`:                              "NUMBER_VALUE can not be converted to a String",
		`{"FunctionName":true}`:                           "TRUE_VALUE can not be converted to a String",
		`{"FunctionName":{}}`:                             "Start of structure or map found where not expected.",
		`{"Timeout":"3"}`:                                 "STRING_VALUE can not be converted to an Integer",
		`{"Timeout":3.5}`:                                 "NUMBER_VALUE can not be converted to an Integer",
		`{"Timeout":2147483648}`:                          "NUMBER_VALUE can not be converted to an Integer",
		`{"Timeout":1e400}`:                               "NUMBER_VALUE can not be converted to an Integer",
		`{"Publish":"true"}`:                              "STRING_VALUE can not be converted to a Boolean",
		`{"Code":{"ZipFile":"?"}}`:                        "A blob is not in base64",
		`{"Code":{"ZipFile":1}}`:                          "NUMBER_VALUE can not be converted to a Blob",
		`{"Code":[]}`:                                     "Unexpected value type: a structure was expected, not [",
		`{"Layers":{}}`:                                   "Expected list or null",
		`{"Layers":"a"}`:                                  "Expected list or null",
		`{"Layers":[null]}`:                               "List member must not be null",
		`{"Environment":{"Variables":[]}}`:                "Expected map or null",
		`{"Environment":{"Variables":{"AB":null}}}`:       "Map value must not be null",
		`{"Environment":{"Variables":{"AB":["secret"]}}}`: "Start of structure or map found where not expected.",
		`{"FileSystemConfigs":["a"]}`:                     "Unexpected value type: a structure was expected, not STRING_VALUE",
		`[]`:                                              "Unexpected value type: a structure was expected, not [",
		`null`:                                            "Unexpected value type: a structure was expected, not NULL_VALUE",
		`{"RoutingConfig":{"AdditionalVersionWeights":{"1":"x"}}}`: "",
	} {
		_, err := ask[CreateFunctionRequest](t, "POST", functions, body)
		if want != "" {
			refused(t, body, err, SerializationException, want)
		} else if err == nil {
			t.Error(body)
		}
	}
	for _, body := range []string{"{", `{"a"`, `{"a":}`, `{"FunctionName":"f"`, `{"FunctionName":"f",}`, "{} {}", "{}x", "\x99", "{\"a\":\"\xff\"}", `{"a":01}`, "nul",
		`{"a":` + strings.Repeat("[", 600) + strings.Repeat("]", 600) + "}", `{"Layers":["a"`} {
		_, err := ask[CreateFunctionRequest](t, "POST", functions, body)
		if e, ok := err.(*Error); !ok || e.Kind != InvalidRequestContentException || !strings.HasPrefix(e.Message, "Could not parse request body into json: ") {
			t.Errorf("%.40q: %v", body, err)
		}
	}
}

func TestDecodeQuery(t *testing.T) {
	in, err := ask[UntagResourceRequest](t, "DELETE", "/2017-03-31/tags/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af?tagKeys=a%20b&tagKeys=c%2Bd%2F%3D&other=1", "")
	if err != nil || in.Resource != "arn:aws:lambda:us-east-1:000000000000:function:f" || strings.Join(in.TagKeys, "|") != "a b|c+d/=" {
		t.Errorf("%+v %v", in, err)
	}
	list, err := ask[ListFunctionsRequest](t, "GET", functions+"?MaxItems=7&Marker=", "{not read")
	if err != nil || *list.MaxItems != 7 || list.Marker == nil || list.FunctionVersion != nil {
		t.Errorf("%+v %v", list, err)
	}
	for target, want := range map[string]string{
		"?MaxItems=x":                    "STRING_VALUE can not be converted to an Integer",
		"?MaxItems=":                     "STRING_VALUE can not be converted to an Integer",
		"?MaxItems=99999999999999999999": "STRING_VALUE can not be converted to an Integer",
		"?MaxItems=%zz":                  "The query string is malformed.",
	} {
		_, err := ask[ListFunctionsRequest](t, "GET", functions+target, "")
		refused(t, target, err, SerializationException, want)
	}
}

func TestDecodeInvoke(t *testing.T) {
	r := request("POST", functions+"/f%3A1/invocations?Qualifier=1", "")
	r.Header.Set("x-amz-invocation-type", "Event")
	r.Header.Set("X-Amz-Log-Type", "Tail")
	_, vars, err := Route(r)
	if err != nil {
		t.Fatal(err)
	}
	body := []byte("not \xff json")
	in, err := Decode[InvocationRequest](r, vars, body)
	if err != nil {
		t.Fatal(err)
	}
	if in.FunctionName != "f:1" || *in.InvocationType != InvocationTypeEvent || *in.LogType != LogTypeTail || *in.Qualifier != "1" || &in.Payload[0] != &body[0] || in.ClientContext != nil {
		t.Errorf("%+v", in)
	}
	r.Header.Set("X-Amz-Invocation-Type", "event")
	_, err = Decode[InvocationRequest](r, vars, nil)
	refused(t, "type", err, ValidationException, "1 validation error detected: Value 'event' at 'invocationType' failed to satisfy constraint: "+
		"Member must satisfy enum value set: [Event, RequestResponse, DryRun]")
}

// Whatever comes is decoded or refused by one of the package's errors; what is
// decoded is written and decoded again to the same.
func FuzzDecode(f *testing.F) {
	f.Add(`{"FunctionName":"f","Role":"arn:aws:iam::000000000000:role/r","Code":{"ZipFile":"aGk="},"Environment":{"Variables":{"AB":"1"}},"Layers":[]}`, "f", "Qualifier=1")
	f.Add(`{"SourceAccessConfigurations":[{"Type":"BASIC_AUTH"}],"StartingPositionTimestamp":1.5,"FunctionName":"f","SelfManagedEventSource":{"Endpoints":{"k":["h:1"]}}}`, "arn%3Aaws", "a=%zz")
	f.Add(`{"a":[[[{"b":null}]]],"RoutingConfig":{"AdditionalVersionWeights":{"1":0.5}},"Name":"n","FunctionVersion":"1"}`, "%24LATEST", "tagKeys=a&tagKeys=b")
	f.Add("\x00", "/", "&&=")
	f.Fuzz(func(t *testing.T, body, name, query string) {
		r := &http.Request{Method: "POST", Header: http.Header{}, URL: &url.URL{Path: functions + "/" + name + "/aliases", RawPath: functions + "/" + name + "/aliases", RawQuery: query}}
		_, vars, err := Route(r)
		if err != nil {
			vars = Vars{"FunctionName": name}
		}
		again[CreateFunctionRequest](t, r, vars, body)
		again[CreateAliasRequest](t, r, vars, body)
		again[CreateEventSourceMappingRequest](t, r, vars, body)
		again[UntagResourceRequest](t, r, vars, body)
	})
}

func again[In any](t *testing.T, r *http.Request, vars Vars, body string) {
	in, err := Decode[In](r, vars, []byte(body))
	if err != nil {
		if e, ok := err.(*Error); !ok || e.Message == "" {
			t.Errorf("%T %v", err, err)
		}
		return
	}
	text := marshal(in)
	back, err := Decode[In](r, vars, text)
	if err != nil || string(marshal(back)) != string(text) {
		t.Errorf("%s\n%s\n%v", text, marshal(back), err)
	}
}
