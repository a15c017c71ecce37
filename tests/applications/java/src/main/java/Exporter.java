import io.opentelemetry.api.common.Attributes;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanKind;
import io.opentelemetry.api.trace.StatusCode;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.exporter.otlp.http.trace.OtlpHttpSpanExporter;
import io.opentelemetry.exporter.otlp.trace.OtlpGrpcSpanExporter;
import io.opentelemetry.sdk.common.export.RetryPolicy;
import io.opentelemetry.sdk.resources.Resource;
import io.opentelemetry.sdk.trace.SdkTracerProvider;
import io.opentelemetry.sdk.trace.export.BatchSpanProcessor;
import io.opentelemetry.sdk.trace.export.SpanExporter;
import java.time.Duration;
import java.time.Instant;
import java.util.concurrent.TimeUnit;

/** Sends spans and prints how many: {@code Exporter PROTOCOL ENDPOINT COMPRESSION SPANS PAUSE_MS SERVICE}. */
public final class Exporter {
  private static final int BATCH_SPANS = 64;
  private static final int ATTEMPTS = 5;
  private static final long START_SECONDS = 1_700_000_000L;

  private Exporter() {}

  public static void main(String[] arguments) throws InterruptedException {
    int spans = Integer.parseInt(arguments[3]);
    SdkTracerProvider provider =
        SdkTracerProvider.builder()
            .setResource(
                Resource.create(
                    Attributes.builder().put("service.name", arguments[5]).put("cloud.region", "eu-west-1").build()))
            .addSpanProcessor(
                BatchSpanProcessor.builder(exporter(arguments[0], arguments[1], arguments[2]))
                    .setMaxExportBatchSize(BATCH_SPANS)
                    .setMaxQueueSize(spans + BATCH_SPANS)
                    .setScheduleDelay(Duration.ofMillis(100))
                    .setExporterTimeout(Duration.ofSeconds(100))
                    .build())
            .build();
    send(provider.get("exporter"), spans, Long.parseLong(arguments[4]));
    if (!provider.shutdown().join(110, TimeUnit.SECONDS).isSuccess()) {
      System.err.println("the shutdown did not succeed");
      System.exit(1);
    }
    System.out.println("{\"sent\": " + spans + "}");
    System.exit(0);
  }

  private static SpanExporter exporter(String protocol, String endpoint, String compression) {
    RetryPolicy retry =
        RetryPolicy.builder()
            .setMaxAttempts(ATTEMPTS)
            .setInitialBackoff(Duration.ofMillis(500))
            .setMaxBackoff(Duration.ofSeconds(10))
            .setBackoffMultiplier(2)
            .build();
    Duration timeout = Duration.ofSeconds(90);
    if (protocol.equals("grpc")) {
      return OtlpGrpcSpanExporter.builder()
          .setEndpoint("http://" + endpoint)
          .setCompression(compression)
          .setTimeout(timeout)
          .setRetryPolicy(retry)
          .build();
    }
    return OtlpHttpSpanExporter.builder()
        .setEndpoint("http://" + endpoint + "/v1/traces")
        .setCompression(compression)
        .setTimeout(timeout)
        .setRetryPolicy(retry)
        .build();
  }

  private static void send(Tracer tracer, int spans, long pauseMillis) throws InterruptedException {
    for (int i = 0; i < spans; i++) {
      Instant begin = Instant.ofEpochSecond(START_SECONDS).plusMillis(i);
      Span span =
          tracer
              .spanBuilder("GET " + i)
              .setNoParent()
              .setSpanKind(SpanKind.CLIENT)
              .setStartTimestamp(begin)
              .setAttribute("db.system.name", "redis")
              .setAttribute("db.operation.name", "GET")
              .setAttribute("tenant.id", "tenant-" + i % 3)
              .setAttribute("cache.hit", i % 2 == 0)
              .setAttribute("cache.item.size", (long) i)
              .setAttribute("ratio", i / 4.0 + 0.125)
              .setAttribute("text", "gr\u00f6\u00dfer \u2014 \u5927")
              .startSpan();
      if (i % 10 == 0) {
        span.setStatus(StatusCode.ERROR, "no such key");
      }
      span.addEvent("looked up", begin);
      span.end(begin.plusMillis(i + 1));
      Thread.sleep(pauseMillis);
    }
  }
}
