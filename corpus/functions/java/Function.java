import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.UUID;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * The sample function in Java, with a small client of the Runtime API. It answers with its event, but for {"do": …}: {"error": "text"}
 * fails with that text, {"exit": N} ends with that status, {"sleep_ms": N} sleeps and tells of itself.
 */
public final class Function {
    private static final String API = "http://" + System.getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/invocation/";
    private static final String INSTANCE = UUID.randomUUID().toString();

    private final HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    private int invokes;

    public static void main(String[] arguments) throws Exception {
        Function function = new Function();
        while (true) {
            function.serve();
        }
    }

    private void serve() throws IOException, InterruptedException {
        HttpResponse<String> next = client.send(HttpRequest.newBuilder(URI.create(API + "next")).build(), BodyHandlers.ofString());
        if (next.statusCode() != 200) {
            throw new IOException("next: status " + next.statusCode());
        }
        String id = next.headers().firstValue("Lambda-Runtime-Aws-Request-Id").orElseThrow();
        try {
            post(id + "/response", handle(next.body(), id));
        } catch (IllegalArgumentException error) {
            post(id + "/error", "{\"errorType\":\"" + error.getClass().getName() + "\",\"errorMessage\":\"" + error.getMessage() + "\"}");
        }
    }

    private String handle(String event, String id) throws InterruptedException {
        invokes++;
        if (!event.contains("\"do\"")) {
            return event;
        }
        String exit = member(event, "exit"), error = member(event, "error"), sleep = member(event, "sleep_ms");
        if (exit != null) {
            Runtime.getRuntime().halt(Integer.parseInt(exit));
        }
        if (error != null) {
            throw new IllegalArgumentException(error);
        }
        if (sleep != null) {
            Thread.sleep(Long.parseLong(sleep));
        }
        return String.format("{\"instance\":\"%s\",\"invokes\":%d,\"request_id\":\"%s\",\"function\":\"%s\"}",
                INSTANCE, invokes, id, System.getenv("AWS_LAMBDA_FUNCTION_NAME"));
    }

    /** A member of the event that is a number or a string without escapes; null if there is none. */
    private static String member(String event, String name) {
        Matcher m = Pattern.compile("\"" + name + "\"\\s*:\\s*(?:\"([^\"\\\\]*)\"|(\\d+))").matcher(event);
        if (!m.find()) {
            return null;
        }
        return m.group(1) != null ? m.group(1) : m.group(2);
    }

    private void post(String path, String body) throws IOException, InterruptedException {
        HttpRequest request = HttpRequest.newBuilder(URI.create(API + path)).header("Content-Type", "application/json").POST(BodyPublishers.ofString(body)).build();
        int status = client.send(request, BodyHandlers.discarding()).statusCode();
        if (status != 202) {
            throw new IOException(path + ": status " + status);
        }
    }
}
